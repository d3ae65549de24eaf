//! The command on its terminal.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::unistd::{Pid, Uid};

use crate::job::prepare::Prepared;
use crate::sys;

/// The terminal's size until somebody attaches.
const WINDOW: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A started command.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its first process, which leads the session.
    pub(crate) pid: Pid,
    /// Its terminal.
    pub(crate) terminal: Terminal,
}

/// A terminal, seen from the side that a person would sit at.
#[derive(Debug)]
pub(crate) struct Terminal {
    ours: File,
    // Kept open, so that the terminal lives on when the job closes it and opens it again.
    theirs: OwnedFd,
}

impl Terminal {
    fn open() -> io::Result<Terminal> {
        let pair = openpty(&WINDOW, None)?;
        for end in [pair.master.as_fd(), pair.slave.as_fd()] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok(Terminal { ours: File::from(pair.master), theirs: pair.slave })
    }

    /// Fills the buffer with what was printed, as far as there is something, and answers how much.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.ours.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing there for now; any other error means that nothing will come.
                Err(_) => break,
            }
        }
        filled
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.ours.as_fd()
    }
}

/// Starts the command in a session of its own, on a new terminal.
pub(crate) fn launch(prepared: &Prepared) -> Result<Launched, String> {
    let program = prepared.argv.first().ok_or_else(|| "the job has no command".to_owned())?;
    let terminal = Terminal::open().map_err(|error| format!("cannot open a terminal: {error}"))?;
    if let Some(credentials) = &prepared.credentials {
        // The job may open its terminal again by name; where it may not, nothing else is lost.
        let _ = nix::unistd::fchown(&terminal.theirs, Some(Uid::from_raw(credentials.uid)), None);
    }
    let start = || -> io::Result<std::process::Child> {
        let mut command = Command::new(program);
        command
            .args(&prepared.argv[1..])
            .env_clear()
            .envs(&prepared.env)
            .current_dir(&prepared.working_dir)
            .stdin(Stdio::from(terminal.theirs.try_clone()?))
            .stdout(Stdio::from(terminal.theirs.try_clone()?))
            .stderr(Stdio::from(terminal.theirs.try_clone()?));
        sys::prepare_child(&mut command, true, prepared.credentials.clone());
        command.spawn()
    };
    let child = start().map_err(|error| format!("cannot start `{program}`: {error}"))?;
    Ok(Launched { pid: Pid::from_raw(child.id() as i32), terminal })
}
