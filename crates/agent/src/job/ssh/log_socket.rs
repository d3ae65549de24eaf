//! The port at which official clients look for a job's log.

use std::sync::Arc;

use tokio::io::DuplexStream;

use super::Server;

/// A connection to it, where that is what the client asks for.
pub(super) fn connect(_server: &Arc<Server>, _host: &str, _port: u16) -> Option<DuplexStream> {
    None
}
