//! SSH out: connect to a host, know it again by its key, run commands, push files, carry streams.
//!
//! A client inside of this process, for the server and the command line. It needs nothing on the host but `sshd` and
//! a POSIX shell, and no `ssh` program here. The SSH library stays inside of this crate.
//!
//! Start with [`Session::connect`]; a connection that must last is a [`Kept`] one.

mod checksum;
mod client;
mod command;
mod connect;
mod error;
mod exec;
mod kept;
mod keys;
mod login;
mod probe;
mod push;
mod session;
mod stream;
mod target;
mod words;

pub use command::{Command, Output, Privilege, Status};
pub use error::{Error, KeyProblem, Result, Step, SudoProblem};
pub use kept::{Chance, Kept, Retry, State};
pub use keys::{HostKey, Key};
pub use probe::{Facts, probe};
pub use push::{File, Pushed, push_file};
pub use session::Session;
pub use stream::{Exit, Stream};
pub use target::{Limits, Target};
