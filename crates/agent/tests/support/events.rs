//! What an agent tells of by itself.

use api::agent::*;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{Agent, Client, DEADLINE};

/// The event stream of one connection.
pub struct Events {
    body: Incoming,
    buffer: BytesMut,
    _client: Client,
}

impl Events {
    pub async fn of(agent: &mut Agent) -> Events {
        // An agent that nobody has greeted belongs to nobody.
        agent.hello().await;
        let mut client = agent.client().await;
        let answer = client.send("GET", "/v1/events", Bytes::new()).await.unwrap();
        Events { body: answer.into_body(), buffer: BytesMut::new(), _client: client }
    }

    pub async fn next(&mut self) -> AgentEvent {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return serde_json::from_slice(&self.buffer.split_to(end + 1)).unwrap();
            }
            let frame = timeout(DEADLINE, self.body.frame()).await.expect("an idle stream has pings");
            self.buffer.extend_from_slice(frame.unwrap().unwrap().data_ref().unwrap());
        }
    }

    /// Waits for news of the host that are as wanted.
    pub async fn news(&mut self, what: &str, holds: impl Fn(&HostNews) -> bool) -> HostNews {
        let found = async {
            loop {
                if let AgentEvent::Host(news) = self.next().await
                    && holds(&news)
                {
                    return *news;
                }
            }
        };
        timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
    }
}
