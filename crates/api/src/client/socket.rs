//! WebSockets of the server: one request that is upgraded, with the token and the version of every other call.

use reqwest::StatusCode;
use reqwest::header::{CONNECTION, HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{Client, ClientError};

pub(super) type Socket = WebSocketStream<reqwest::Upgraded>;

/// Opens the WebSocket at `path`, and answers the headers of the upgrade too; messages beyond `message_limit` bytes end it. `of_answer` says what an answer other
/// than an upgrade means.
pub(super) async fn open(
    client: &Client,
    path: &str,
    query: &[(&str, String)],
    message_limit: usize,
    of_answer: impl FnOnce(u16, String, &[u8]) -> ClientError,
) -> Result<(Socket, HeaderMap), ClientError> {
    let url = client.url(path, query);
    let request = client
        .http
        .get(&url)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, generate_key());
    let response = client.send(request).await?;
    let status = response.status();
    if status != StatusCode::SWITCHING_PROTOCOLS {
        let body = response.bytes().await.unwrap_or_default();
        return Err(of_answer(status.as_u16(), url, &body));
    }
    let headers = response.headers().clone();
    let upgraded = response
        .upgrade()
        .await
        .map_err(|source| ClientError::Interrupted { url: client.base_url.clone(), source: Box::new(source) })?;
    let config =
        WebSocketConfig::default().max_message_size(Some(message_limit)).max_frame_size(Some(message_limit));
    Ok((WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await, headers))
}
