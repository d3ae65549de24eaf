//! The index of one log: entries of one size in a file, so that the file itself is searched and memory holds none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of one entry: offset, position, time, kind; each eight bytes, little-endian.
const ENTRY_BYTES: usize = 32;

/// Entries that are read from the file at once.
const BLOCK: u64 = 2048;

/// What an entry begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes that follow those before them.
    Data,
    /// Bytes before which others are lost.
    Gap,
    /// Nothing: the log is complete.
    End,
}

/// Where bytes that were written together begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where they begin in the log.
    pub(super) offset: u64,
    /// Where they begin in `data`.
    pub(super) position: u64,
    /// When they were written. It never falls from one entry to the next.
    pub(super) time_micros: i64,
    /// What they are.
    pub(super) kind: Kind,
}

impl Entry {
    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let kind = match self.kind {
            Kind::Data => 0_u64,
            Kind::Gap => 1,
            Kind::End => 2,
        };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.time_micros.to_le_bytes());
        bytes[24..].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Entry {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            word
        };
        Entry {
            offset: u64::from_le_bytes(word(0)),
            position: u64::from_le_bytes(word(8)),
            time_micros: i64::from_le_bytes(word(16)),
            kind: match u64::from_le_bytes(word(24)) {
                1 => Kind::Gap,
                2 => Kind::End,
                _ => Kind::Data,
            },
        }
    }
}

/// The length of an index file with so many entries.
pub(super) fn file_length(entries: u64) -> u64 {
    entries * ENTRY_BYTES as u64
}

/// Writes one entry at its place.
pub(super) fn write(file: &File, number: u64, entry: &Entry) -> io::Result<()> {
    file.write_all_at(&entry.encode(), file_length(number))
}

fn read(file: &File, number: u64) -> io::Result<Entry> {
    let mut bytes = [0; ENTRY_BYTES];
    file.read_exact_at(&mut bytes, file_length(number))?;
    Ok(Entry::decode(&bytes))
}

/// How many entries of a file say something of `stored` bytes, and the last of them. A crash may leave half an entry,
/// or entries without their bytes.
pub(super) fn recover(file: &File, stored: u64) -> io::Result<(u64, Option<Entry>)> {
    let whole = file.metadata()?.len() / ENTRY_BYTES as u64;
    let count = partition(whole, |number| Ok(read(file, number)?.position <= stored))?;
    let last = count.checked_sub(1).map(|number| read(file, number)).transpose()?;
    Ok((count, last))
}

/// How many of the first `count` numbers fulfil a condition that only the first ones do.
fn partition(count: u64, holds: impl Fn(u64) -> io::Result<bool>) -> io::Result<u64> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle)? {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// The entries that a log had at some moment.
#[derive(Debug)]
pub(super) struct Entries {
    /// The index; it may have grown since.
    pub(super) file: File,
    /// How many there were.
    pub(super) count: u64,
    /// The last one, which alone may change in the file.
    pub(super) last: Entry,
}

impl Entries {
    fn get(&self, number: u64) -> io::Result<Entry> {
        if number + 1 == self.count { Ok(self.last) } else { read(&self.file, number) }
    }

    /// The number of the last entry that begins at `offset` or before, or of the first one.
    pub(super) fn number_at(&self, offset: u64) -> io::Result<u64> {
        let after = partition(self.count, |number| Ok(self.get(number)?.offset <= offset))?;
        Ok(after.saturating_sub(1))
    }

    /// Where the first bytes begin that were written later than `time_micros`, if there are such.
    pub(super) fn offset_after(&self, time_micros: i64) -> io::Result<Option<u64>> {
        let first = partition(self.count, |number| Ok(self.get(number)?.time_micros <= time_micros))?;
        if first == self.count { Ok(None) } else { Ok(Some(self.get(first)?.offset)) }
    }

    /// Some entries from a number on, in order; none only when there are no more.
    pub(super) fn block(&self, from: u64) -> io::Result<Vec<Entry>> {
        let count = self.count.saturating_sub(from).min(BLOCK);
        if count == 0 {
            return Ok(vec![]);
        }
        let mut bytes = vec![0; usize::try_from(file_length(count)).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, file_length(from))?;
        let mut entries: Vec<Entry> = bytes.chunks_exact(ENTRY_BYTES).map(Entry::decode).collect();
        if from + count == self.count
            && let Some(last) = entries.last_mut()
        {
            *last = self.last;
        }
        Ok(entries)
    }
}
