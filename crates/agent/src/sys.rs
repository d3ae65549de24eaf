//! What has no safe form: forking, and what runs between fork and exec. No other file has unsafe code.

#![expect(
    unsafe_code,
    reason = "fork, the code between fork and exec, ioctls and descriptors to wait for have no safe form"
)]

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::pty::Winsize;
use nix::sys::signal::SigSet;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, Gid, Uid};
use tokio::io::unix::AsyncFd;

/// Which of the two processes returns from [`detach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detached {
    /// The one that was started; it has only to exit.
    Starter,
    /// The one that stays, in a session of its own and nobody's child.
    Daemon,
}

/// Continues in a process that outlives its starter: in a new session, without a terminal, a child of init.
pub(crate) fn detach() -> nix::Result<Detached> {
    // SAFETY: the process has only this thread, so the child may run any code.
    if let ForkResult::Parent { .. } = unsafe { nix::unistd::fork() }? {
        return Ok(Detached::Starter);
    }
    nix::unistd::setsid()?;
    // SAFETY: as above.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { .. } => Ok(Detached::Starter),
        ForkResult::Child => Ok(Detached::Daemon),
    }
}

/// Whom a child becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// The user.
    pub(crate) uid: u32,
    /// The primary group.
    pub(crate) gid: u32,
    /// All groups.
    pub(crate) groups: Vec<u32>,
}

/// Lets the command start in a session of its own with the signals as a login would set them, with its
/// standard input as controlling terminal if asked for, and as another user if asked for.
pub(crate) fn prepare_child(command: &mut Command, terminal: bool, credentials: Option<Credentials>) {
    let groups: Vec<Gid> =
        credentials.iter().flat_map(|credentials| credentials.groups.iter().copied().map(Gid::from_raw)).collect();
    let setup = move || -> io::Result<()> {
        nix::unistd::setsid()?;
        if terminal {
            // SAFETY: the ioctl takes an integer; descriptor 0 is the terminal that was given as stdin.
            let result = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
            nix::errno::Errno::result(result)?;
        }
        if let Some(credentials) = &credentials {
            nix::unistd::setgroups(&groups)?;
            nix::unistd::setgid(Gid::from_raw(credentials.gid))?;
            nix::unistd::setuid(Uid::from_raw(credentials.uid))?;
        }
        for signal in 1..=64 {
            // SAFETY: setting the default action only fails for signals that cannot be caught.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: the closure only makes system calls on data allocated before the fork.
    unsafe { command.pre_exec(setup) };
}

/// Lets the command start with no signal blocked, whatever is here.
pub(crate) fn unblock_signals(command: &mut Command) {
    // SAFETY: the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
}

/// Tells a terminal its size; whoever runs on it is told by a signal.
pub(crate) fn set_window(terminal: impl AsFd, window: &Winsize) -> nix::Result<()> {
    let descriptor = terminal.as_fd().as_raw_fd();
    // SAFETY: the request reads one window size from the pointer, which is a reference that outlives the call.
    let result = unsafe { libc::ioctl(descriptor, libc::TIOCSWINSZ, std::ptr::from_ref(window)) };
    nix::errno::Errno::result(result).map(drop)
}

/// A terminal that the runtime waits for.
pub(crate) fn watch_terminal(terminal: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a file owns its descriptor, answers the same one always, and closes it only when it is dropped, which the
    // runtime's handle does itself.
    Ok(unsafe { AsyncFd::register(terminal) }?)
}

/// Reads what has come on a socket, and the open files that were sent beside it. Nobody waits.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made these descriptors for us, so nobody else owns them.
            files.extend(descriptors.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    Ok((message.bytes, files))
}
