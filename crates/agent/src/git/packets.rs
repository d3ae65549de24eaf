//! The frames of Git's protocol: four digits of length, then so many bytes.

use std::io::{self, BufRead, Read};

use super::error::Error;

/// The longest frame, its length included.
const LIMIT: usize = 65_520;

/// A frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet {
    /// Bytes.
    Data(Vec<u8>),
    /// The end of a message.
    Flush,
    /// The end of a part of a message.
    Delimiter,
    /// The end of an answer where there is no connection to end.
    ResponseEnd,
}

/// Appends a frame with a line of text.
pub(super) fn push_line(body: &mut Vec<u8>, line: &str) {
    body.extend_from_slice(format!("{:04x}{line}\n", line.len() + 5).as_bytes());
}

/// The frame that ends a message.
pub(super) const FLUSH: &[u8] = b"0000";
/// The frame that ends a part of a message.
pub(super) const DELIMITER: &[u8] = b"0001";

/// Reads the next frame. None: the other side has nothing more to say.
pub(super) fn read(reader: &mut dyn BufRead) -> Result<Option<Packet>, Error> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut digits = [0; 4];
    reader.read_exact(&mut digits)?;
    let length = std::str::from_utf8(&digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
    let length = match length {
        Some(0) => return Ok(Some(Packet::Flush)),
        Some(1) => return Ok(Some(Packet::Delimiter)),
        Some(2) => return Ok(Some(Packet::ResponseEnd)),
        Some(length @ 4..=LIMIT) => length - 4,
        _ => return Err(Error::NotGit),
    };
    let mut data = vec![0; length];
    reader.read_exact(&mut data)?;
    match data.strip_prefix(b"ERR ") {
        Some(message) => Err(Error::Refused(String::from_utf8_lossy(message).trim().to_owned())),
        None => Ok(Some(Packet::Data(data))),
    }
}

/// A frame's text, without its end of line.
pub(super) fn text(data: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(data.strip_suffix(b"\n").unwrap_or(data)).map_err(|_| Error::NotGit)
}

/// The bytes of a pack, taken out of frames that carry progress and errors as well.
pub(super) struct SideBand<'a> {
    reader: &'a mut dyn BufRead,
    data: Vec<u8>,
    read: usize,
    is_over: bool,
}

impl<'a> SideBand<'a> {
    pub(super) fn new(reader: &'a mut dyn BufRead) -> SideBand<'a> {
        SideBand { reader, data: Vec::new(), read: 0, is_over: false }
    }

    fn next(&mut self) -> Result<(), Error> {
        match read(self.reader)? {
            None | Some(Packet::Flush | Packet::ResponseEnd) => self.is_over = true,
            Some(Packet::Delimiter) => {}
            Some(Packet::Data(data)) => match data.first() {
                Some(1) => (self.data, self.read) = (data, 1),
                Some(2) | None => {}
                Some(3) => {
                    return Err(Error::Refused(String::from_utf8_lossy(&data[1..]).trim().to_owned()));
                }
                Some(_) => return Err(Error::NotGit),
            },
        }
        Ok(())
    }
}

impl Read for SideBand<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.data.len() && !self.is_over {
            self.next().map_err(io::Error::other)?;
        }
        let length = buffer.len().min(self.data.len() - self.read);
        buffer[..length].copy_from_slice(&self.data[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_back() {
        let mut body = Vec::new();
        push_line(&mut body, "want x");
        body.extend_from_slice(DELIMITER);
        body.extend_from_slice(FLUSH);
        let mut reader: &[u8] = &body;
        assert_eq!(read(&mut reader).unwrap(), Some(Packet::Data(b"want x\n".to_vec())));
        assert_eq!(read(&mut reader).unwrap(), Some(Packet::Delimiter));
        assert_eq!(read(&mut reader).unwrap(), Some(Packet::Flush));
        assert_eq!(read(&mut reader).unwrap(), None);
    }

    #[test]
    fn the_pack_is_taken_out_of_its_frames() {
        let mut reader: &[u8] = b"0006\x01a0009\x02hey\n0007\x01bc0000";
        let mut pack = Vec::new();
        SideBand::new(&mut reader).read_to_end(&mut pack).unwrap();
        assert_eq!(pack, b"abc");
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&b"<html><body>"[..], b"0003", b"fff5"] {
            let mut reader = bytes;
            assert!(read(&mut reader).is_err());
        }
        let mut reader: &[u8] = b"000fERR not you";
        assert!(matches!(read(&mut reader), Err(Error::Refused(message)) if message == "not you"));
    }
}
