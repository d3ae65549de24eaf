//! Many clients at once.

use std::time::Duration;

use reqwest::Method;

use crate::harness::{ADMIN, TestServer, answer};

/// Clients at the same time.
const CLIENTS: usize = 200;

/// Requests of each.
const REQUESTS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_at_once_are_all_answered() {
    let server = TestServer::new().await;
    let url = server.url("/api/projects/main/get");
    let clients = (0..CLIENTS).map(|_| {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = url.clone();
        tokio::spawn(async move {
            for _ in 0..REQUESTS {
                answer(client.post(&url).bearer_auth(ADMIN)).await.ok();
            }
        })
    });
    let all = async {
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_mins(4), all).await.unwrap();
}

#[tokio::test]
async fn http2_is_spoken_to_those_who_begin_with_it() {
    let server = TestServer::new().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let response = client.request(Method::GET, server.url("/healthcheck")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_2));
}

#[tokio::test]
async fn requests_that_are_being_answered_are_finished_before_the_end() {
    let server = TestServer::new().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = server.url("/api/projects/main/get");
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let (client, url) = (client.clone(), url.clone());
            tokio::spawn(async move { client.post(&url).bearer_auth(ADMIN).send().await })
        })
        .collect();
    // Connections that are open are answered; later ones may be refused, but none is cut off half-way.
    tokio::task::yield_now().await;
    let stopped = server.stop();
    let answers = async {
        for asked in asking {
            if let Ok(response) = asked.await.unwrap() {
                assert_eq!(response.status(), 200);
                response.bytes().await.unwrap();
            }
        }
    };
    tokio::join!(stopped, answers);
}
