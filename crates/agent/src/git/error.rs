//! Why a repository could not be had.

use std::io;

use crate::disk;

/// What went wrong. Whoever catches it puts it into a sentence for the user.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The repository is not for this login, or there is none.
    #[error("access was refused")]
    Unauthorized,
    /// There is no such repository, or not for us.
    #[error("it was not found")]
    NotFound,
    /// The other side gave its own reason.
    #[error("it was refused: {0}")]
    Refused(String),
    /// The other side does not speak Git's protocol.
    #[error("what is there does not speak Git's protocol")]
    NotGit,
    /// The other side could not be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Nothing came for too long.
    #[error("nothing has come from it for {0} seconds")]
    Stalled(u64),
    /// A disk had no room, a file could not be written, or a connection broke.
    #[error("{0}")]
    Io(io::Error),
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        // Readers of ours may only fail with errors of files; what they carry is the cause.
        match error.downcast::<Error>() {
            Ok(cause) => cause,
            Err(error) => Error::Io(error),
        }
    }
}

impl Error {
    /// The error below those of other crates, which know their own causes not by type.
    pub(super) fn from_chain(error: &(dyn std::error::Error + 'static)) -> Error {
        let mut cause = Some(error);
        let mut last = String::new();
        while let Some(error) = cause {
            let own = error.downcast_ref::<io::Error>();
            if own.is_some_and(|own| disk::is_full(own) || own.kind() == io::ErrorKind::StorageFull) {
                return Error::Io(io::ErrorKind::StorageFull.into());
            }
            last = error.to_string();
            cause = error.source();
        }
        Error::Other(last)
    }
}
