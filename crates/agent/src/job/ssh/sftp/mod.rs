//! Files for SSH clients: the server's side of SFTP version 3, with what OpenSSH added to it.
//!
//! It is a process of its own, a child of the SSH server, that answers one request after the other on its standard
//! input and output. It runs as the job's user, so the kernel says what it may touch.

mod attributes;
mod files;
mod packet;

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use self::files::Files;
use self::packet::{Reader, Writer};

/// The protocol's version.
const VERSION: u32 = 3;
/// The longest packet: a write of the most that is offered, and its names and numbers.
const PACKET_LIMIT: usize = DATA_LIMIT + 4096;
/// How many bytes one request may read or write.
const DATA_LIMIT: usize = 256 * 1024;
/// How many files and directories may be open.
const HANDLES_LIMIT: usize = 1024;

/// What OpenSSH added, with versions.
const EXTENSIONS: [(&str, &str); 8] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("fstatvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

mod kind {
    pub(super) const INIT: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const OPEN: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const READ: u8 = 5;
    pub(super) const WRITE: u8 = 6;
    pub(super) const LSTAT: u8 = 7;
    pub(super) const FSTAT: u8 = 8;
    pub(super) const SETSTAT: u8 = 9;
    pub(super) const FSETSTAT: u8 = 10;
    pub(super) const OPENDIR: u8 = 11;
    pub(super) const READDIR: u8 = 12;
    pub(super) const REMOVE: u8 = 13;
    pub(super) const MKDIR: u8 = 14;
    pub(super) const RMDIR: u8 = 15;
    pub(super) const REALPATH: u8 = 16;
    pub(super) const STAT: u8 = 17;
    pub(super) const RENAME: u8 = 18;
    pub(super) const READLINK: u8 = 19;
    pub(super) const SYMLINK: u8 = 20;
    pub(super) const STATUS: u8 = 101;
    pub(super) const HANDLE: u8 = 102;
    pub(super) const DATA: u8 = 103;
    pub(super) const NAME: u8 = 104;
    pub(super) const ATTRS: u8 = 105;
    pub(super) const EXTENDED: u8 = 200;
    pub(super) const EXTENDED_REPLY: u8 = 201;
}

/// Serves files until the client goes.
pub(crate) fn run() -> anyhow::Result<()> {
    let input = BufReader::with_capacity(PACKET_LIMIT, io::stdin().lock());
    let output = BufWriter::with_capacity(PACKET_LIMIT, io::stdout().lock());
    serve(input, output)?;
    Ok(())
}

fn serve(mut input: BufReader<impl Read>, mut output: BufWriter<impl Write>) -> io::Result<()> {
    let mut files = Files::default();
    let mut packet = Vec::new();
    let mut answer = Writer::default();
    while read_packet(&mut input, &mut packet)? {
        let Some(()) = respond(&mut files, &packet, &mut answer) else {
            // Who breaks the protocol is not understood any more.
            return Err(io::ErrorKind::InvalidData.into());
        };
        output.write_all(&answer.take_packet())?;
        // Answers to what is already here go together.
        if input.buffer().is_empty() {
            output.flush()?;
        }
    }
    output.flush()
}

/// Reads one packet; answers whether there was one.
fn read_packet(input: &mut BufReader<impl Read>, packet: &mut Vec<u8>) -> io::Result<bool> {
    if input.fill_buf()?.is_empty() {
        return Ok(false);
    }
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length == 0 || length > PACKET_LIMIT {
        return Err(io::ErrorKind::InvalidData.into());
    }
    packet.resize(length, 0);
    input.read_exact(packet)?;
    Ok(true)
}

/// Does what a packet asks for. None: it is none of the protocol.
fn respond(files: &mut Files, packet: &[u8], answer: &mut Writer) -> Option<()> {
    let mut request = Reader::new(packet);
    let kind = request.byte()?;
    if kind == kind::INIT {
        answer.begin(kind::VERSION);
        answer.u32(VERSION);
        for (name, version) in EXTENSIONS {
            answer.bytes(name.as_bytes());
            answer.bytes(version.as_bytes());
        }
        return Some(());
    }
    let id = request.u32()?;
    answer.id = id;
    match files.answer(kind, &mut request, answer)? {
        Ok(()) => {}
        Err(error) => answer.status(&error),
    }
    Some(())
}

#[cfg(test)]
mod tests;
