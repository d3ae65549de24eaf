//! The client's own key agent, as a socket that programs of its sessions can ask.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::{env, fs, io};

use super::forward::{PrivateSocket, offer_stream};
use super::transport::{Connection, Offer, Opener};

/// How many names are tried for the directory.
const NAMES: u32 = 100;

/// A socket in a directory that only the job's user may enter. Both are gone with this.
#[derive(Debug)]
pub(super) struct AgentSocket {
    dir: PathBuf,
}

impl AgentSocket {
    /// Makes the client's agent reachable, once for all of its sessions; answers whether it is.
    pub(super) fn offer(connection: &Arc<Connection>, opener: &Opener) -> bool {
        let mut agent = connection.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if agent.is_some() {
            return true;
        }
        let Ok(made) = AgentSocket::make(&connection.server.home) else {
            return false;
        };
        let Ok(socket) = PrivateSocket::bind(&made.path()) else {
            return false;
        };
        let ended = connection.ended.clone();
        let opener = opener.clone();
        let answer = async move {
            while let Ok(stream) = socket.accept().await {
                tokio::spawn(offer_stream(opener.clone(), Offer::Agent, stream));
            }
        };
        tokio::spawn(ended.run_until_cancelled_owned(answer));
        *agent = Some(made);
        true
    }

    /// Makes the directory where the job may write: among temporary files, or else in the home.
    fn make(home: &Path) -> io::Result<AgentSocket> {
        let places = [env::temp_dir(), PathBuf::from("/tmp"), PathBuf::from("/dev/shm"), home.to_owned()];
        let mut failure = io::Error::from(io::ErrorKind::NotFound);
        for place in places {
            for number in 0..NAMES {
                let dir = place.join(format!(".dstack-ssh-{}-{number}", std::process::id()));
                match fs::DirBuilder::new().mode(0o700).create(&dir) {
                    Ok(()) => return Ok(AgentSocket { dir }),
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => {
                        failure = error;
                        break;
                    }
                }
            }
        }
        Err(failure)
    }

    /// Where the socket is.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join("agent")
    }
}

impl Drop for AgentSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.path());
        let _ = fs::remove_dir(&self.dir);
    }
}
