//! Terminals of sessions.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices as Special, Termios,
    tcgetattr, tcsetattr,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sys;

/// A terminal's size, in characters and in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) rows: u32,
    pub(super) columns: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Window {
    fn to_kernel(self) -> Winsize {
        let short = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Winsize {
            ws_row: short(self.rows),
            ws_col: short(self.columns),
            ws_xpixel: short(self.width),
            ws_ypixel: short(self.height),
        }
    }
}

/// The terminal that a client asks for.
#[derive(Debug, Clone)]
pub(super) struct TerminalRequest {
    /// What kind of terminal the client has, for `TERM`.
    pub(super) term: String,
    /// Its size.
    pub(super) window: Window,
    /// How it behaves: numbers of the protocol, and values.
    pub(super) modes: Vec<(u8, u32)>,
}

/// A terminal, seen from the side that a person sits at. Closing it hangs up whoever runs on it.
#[derive(Debug, Clone)]
pub(super) struct Terminal(Arc<AsyncFd<File>>);

/// The side that programs run on.
#[derive(Debug)]
pub(super) struct ProgramSide {
    /// To be its standard input and outputs.
    pub(super) file: OwnedFd,
    /// Its name.
    pub(super) name: Option<PathBuf>,
}

/// Opens a terminal.
pub(super) fn open(request: &TerminalRequest) -> io::Result<(Terminal, ProgramSide)> {
    let pair = openpty(&request.window.to_kernel(), None)?;
    for end in [pair.master.as_fd(), pair.slave.as_fd()] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
    let mut termios = tcgetattr(&pair.slave)?;
    for (mode, value) in &request.modes {
        set_mode(&mut termios, *mode, *value);
    }
    tcsetattr(&pair.slave, SetArg::TCSANOW, &termios)?;
    let name = nix::unistd::ttyname(&pair.slave).ok();
    let terminal = Terminal(Arc::new(sys::watch_terminal(File::from(pair.master))?));
    Ok((terminal, ProgramSide { file: pair.slave, name }))
}

impl Terminal {
    /// Changes the size.
    pub(super) fn resize(&self, window: Window) {
        // A terminal that is gone needs no size.
        let _ = sys::set_window(self.0.get_ref(), &window.to_kernel());
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match guard.try_io(|file| file.get_ref().read(buffer.initialize_unfilled())) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match guard.try_io(|file| file.get_ref().write(bytes)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sets one of the protocol's modes (RFC 4254, section 8). Those that mean nothing here are left out.
fn set_mode(termios: &mut Termios, mode: u8, value: u32) {
    if let Some(character) = special(mode) {
        // The protocol says "none" as the kernel does not.
        termios.control_chars[character as usize] = u8::try_from(value).ok().filter(|v| *v != 255).unwrap_or(0);
        return;
    }
    let is_set = value != 0;
    match mode {
        30..=42 => {
            if let Some(flag) = input(mode) {
                termios.input_flags.set(flag, is_set);
            }
        }
        50..=62 => {
            if let Some(flag) = local(mode) {
                termios.local_flags.set(flag, is_set);
            }
        }
        70..=75 => {
            if let Some(flag) = output(mode) {
                termios.output_flags.set(flag, is_set);
            }
        }
        92 => termios.control_flags.set(ControlFlags::PARENB, is_set),
        93 => termios.control_flags.set(ControlFlags::PARODD, is_set),
        _ => {}
    }
}

fn special(mode: u8) -> Option<Special> {
    Some(match mode {
        1 => Special::VINTR,
        2 => Special::VQUIT,
        3 => Special::VERASE,
        4 => Special::VKILL,
        5 => Special::VEOF,
        6 => Special::VEOL,
        7 => Special::VEOL2,
        8 => Special::VSTART,
        9 => Special::VSTOP,
        10 => Special::VSUSP,
        12 => Special::VREPRINT,
        13 => Special::VWERASE,
        14 => Special::VLNEXT,
        18 => Special::VDISCARD,
        _ => return None,
    })
}

fn input(mode: u8) -> Option<InputFlags> {
    Some(match mode {
        30 => InputFlags::IGNPAR,
        31 => InputFlags::PARMRK,
        32 => InputFlags::INPCK,
        33 => InputFlags::ISTRIP,
        34 => InputFlags::INLCR,
        35 => InputFlags::IGNCR,
        36 => InputFlags::ICRNL,
        38 => InputFlags::IXON,
        39 => InputFlags::IXANY,
        40 => InputFlags::IXOFF,
        41 => InputFlags::IMAXBEL,
        42 => InputFlags::IUTF8,
        _ => return None,
    })
}

fn local(mode: u8) -> Option<LocalFlags> {
    Some(match mode {
        50 => LocalFlags::ISIG,
        51 => LocalFlags::ICANON,
        53 => LocalFlags::ECHO,
        54 => LocalFlags::ECHOE,
        55 => LocalFlags::ECHOK,
        56 => LocalFlags::ECHONL,
        57 => LocalFlags::NOFLSH,
        58 => LocalFlags::TOSTOP,
        59 => LocalFlags::IEXTEN,
        60 => LocalFlags::ECHOCTL,
        61 => LocalFlags::ECHOKE,
        62 => LocalFlags::PENDIN,
        _ => return None,
    })
}

fn output(mode: u8) -> Option<OutputFlags> {
    Some(match mode {
        70 => OutputFlags::OPOST,
        72 => OutputFlags::ONLCR,
        73 => OutputFlags::OCRNL,
        74 => OutputFlags::ONOCR,
        75 => OutputFlags::ONLRET,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_terminal_behaves_as_it_was_asked_to() {
        let window = Window { rows: 40, columns: 100, width: 0, height: 0 };
        // Erase is control-h, kill is off, no echo.
        let modes = vec![(3, 8), (4, 255), (53, 0), (250, 1)];
        let request = TerminalRequest { term: "xterm".to_owned(), window, modes };
        let (_terminal, program) = open(&request).unwrap();
        let termios = tcgetattr(&program.file).unwrap();
        assert_eq!(termios.control_chars[Special::VERASE as usize], 8);
        assert_eq!(termios.control_chars[Special::VKILL as usize], 0);
        assert!(!termios.local_flags.contains(LocalFlags::ECHO));
        assert!(termios.local_flags.contains(LocalFlags::ICANON));
    }
}
