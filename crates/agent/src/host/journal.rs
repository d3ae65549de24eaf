//! A task's journal: one JSON document a line, on the disk before what it announces happens.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::disk;
use crate::host::record::Line;

/// Space that is given back when the disk is full, so that the steps to the end can still be written.
const RESERVE_BYTES: usize = 64 * 1024;

/// The journal of one task.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    reserve: PathBuf,
    length: u64,
    /// Lines that found no room.
    pending: Vec<u8>,
}

impl Journal {
    /// Opens the journal at `path`, making it if it is missing, and reads its lines. A line that a crash cut
    /// short is dropped: what it announced has not happened.
    pub(crate) fn open(path: &Path) -> io::Result<(Journal, Vec<Line>)> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let text = io::read_to_string(&mut file)?;
        let mut lines = Vec::new();
        let mut length = 0;
        for text in text.split_inclusive('\n').take_while(|text| text.ends_with('\n')) {
            let Ok(line) = serde_json::from_str(text) else {
                break;
            };
            lines.push(line);
            length += text.len() as u64;
        }
        file.set_len(length)?;
        file.seek(SeekFrom::End(0))?;
        let reserve = path.with_file_name("reserve");
        Ok((Journal { file, reserve, length, pending: Vec::new() }, lines))
    }

    /// Keeps some space for later lines.
    pub(crate) fn reserve(&self) -> io::Result<()> {
        disk::write_atomically(&self.reserve, &vec![b' '; RESERVE_BYTES])
    }

    /// Writes a line durably. On failure nothing of it is in the file.
    pub(crate) fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.pending);
        let earlier = bytes.len();
        bytes.extend(serde_json::to_vec(line)?);
        bytes.push(b'\n');
        let result = self.write(&bytes).or_else(|error| {
            if disk::is_full(&error) && std::fs::remove_file(&self.reserve).is_ok() {
                return self.write(&bytes);
            }
            Err(error)
        });
        if result.is_err() {
            bytes.truncate(earlier);
            self.pending = bytes;
        }
        result
    }

    /// Remembers a line that found no room, to be written before the next one.
    pub(crate) fn postpone(&mut self, line: &Line) {
        self.pending.extend(serde_json::to_vec(line).unwrap_or_default());
        self.pending.push(b'\n');
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let result = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if let Ok(()) = result {
            self.length += bytes.len() as u64;
        } else {
            // Half a line would hide the next one.
            self.file.set_len(self.length)?;
            self.file.seek(SeekFrom::Start(self.length))?;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::record::Entry;
    use jiff::Timestamp;

    fn line(text: &str) -> Line {
        let entry = Entry::Warning(text.to_owned());
        Line { at: Timestamp::UNIX_EPOCH, boot: "boot".to_owned(), entry }
    }

    #[test]
    fn a_torn_line_is_dropped_and_the_next_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, lines) = Journal::open(&path).unwrap();
        assert!(lines.is_empty());
        journal.append(&line("one")).unwrap();
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"at\":\"1970").unwrap();
        let (mut journal, lines) = Journal::open(&path).unwrap();
        assert_eq!(lines, [line("one")]);
        journal.append(&line("two")).unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, [line("one"), line("two")]);
    }

    #[test]
    fn a_postponed_line_comes_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.postpone(&line("one"));
        journal.append(&line("two")).unwrap();
        assert_eq!(Journal::open(&path).unwrap().1, [line("one"), line("two")]);
    }
}
