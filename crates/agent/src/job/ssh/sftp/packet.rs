//! The protocol's numbers and texts.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::libc;

use super::kind;

/// What is read of a packet. None: it is too short.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(packet: &'a [u8]) -> Reader<'a> {
        Reader(packet)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    /// A path. An empty one is the directory that we are in.
    pub(super) fn path(&mut self) -> Option<PathBuf> {
        let bytes = self.bytes()?;
        Some(PathBuf::from(OsStr::from_bytes(if bytes.is_empty() { b"." } else { bytes })))
    }
}

/// A packet that is being made.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// The number of the request that is answered.
    pub(super) id: u32,
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins a packet without a request's number.
    pub(super) fn begin(&mut self, kind: u8) {
        self.bytes.clear();
        // Its length, once it is known.
        self.u32(0);
        self.bytes.push(kind);
    }

    /// Begins an answer.
    pub(super) fn answer(&mut self, kind: u8) {
        self.begin(kind);
        self.u32(self.id);
    }

    /// The finished packet.
    pub(super) fn take_packet(&mut self) -> Vec<u8> {
        let mut packet = std::mem::take(&mut self.bytes);
        let length = packet.len().saturating_sub(4) as u32;
        if let Some(place) = packet.get_mut(..4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        packet
    }

    /// How long the packet is so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    pub(super) fn u64(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_be_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.u32(bytes.len() as u32);
        self.bytes.extend_from_slice(bytes);
    }

    /// Puts a number where one of the same size was written before.
    pub(super) fn replace_u32(&mut self, place: usize, number: u32) {
        if let Some(bytes) = self.bytes.get_mut(place..place + 4) {
            bytes.copy_from_slice(&number.to_be_bytes());
        }
    }

    /// Adds up to `length` bytes from what `read` fills, with the count before them; answers how many there were.
    pub(super) fn fill(
        &mut self,
        length: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let place = self.bytes.len();
        self.bytes.resize(place + 4 + length, 0);
        let filled = read(&mut self.bytes[place + 4..])?;
        self.bytes.truncate(place + 4 + filled);
        self.replace_u32(place, filled as u32);
        Ok(filled)
    }

    /// The whole answer to a request that was done.
    pub(super) fn done(&mut self) {
        self.write_status(0, "Success");
    }

    /// The whole answer to a request that was not.
    pub(super) fn status(&mut self, error: &Refusal) {
        match error {
            Refusal::End => self.write_status(1, "End of file"),
            Refusal::Unsupported => self.write_status(8, "Operation unsupported"),
            Refusal::Failed(error) => {
                let code = match error.raw_os_error() {
                    Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EBADF) => 2,
                    Some(libc::EACCES | libc::EPERM | libc::EFAULT) => 3,
                    Some(libc::ENOSYS | libc::EOPNOTSUPP) => 8,
                    _ => 4,
                };
                let text = error.to_string();
                let text = text.split(" (os error").next().unwrap_or_default();
                self.write_status(code, text);
            }
        }
    }

    fn write_status(&mut self, code: u32, text: &str) {
        self.answer(kind::STATUS);
        self.u32(code);
        self.bytes(text.as_bytes());
        self.bytes(b"");
    }
}

/// Why a request was not done.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is nothing more to read.
    End,
    /// It is not known here.
    Unsupported,
    /// The system said no.
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Failed(error)
    }
}

impl From<nix::errno::Errno> for Refusal {
    fn from(error: nix::errno::Errno) -> Refusal {
        Refusal::Failed(error.into())
    }
}
