//! How a task's log lies on the disk: segments named by the offset of their first byte, and beside each an
//! index of times. The supervisor writes them; the host agent reads and removes them.

use std::fs;
use std::path::Path;

/// The length at which a new segment is begun.
pub(crate) const SEGMENT_BYTES: u64 = 4 << 20;
/// Bytes of one entry of an index: offset (u64) and microseconds since the epoch (i64), big-endian.
pub(crate) const INDEX_ENTRY: usize = 16;

/// No log is longer. Names that say so are not ours, and would overflow sums.
pub(crate) const LONGEST_LOG: u64 = 1 << 62;
/// No segment of ours is longer: a new one is begun with the next write.
pub(crate) const LONGEST_SEGMENT: u64 = 2 * SEGMENT_BYTES;
/// How many names of a folder are looked at. In a container it is the tenant's, who may make more than memory holds.
const NAMES_LIMIT: usize = 1 << 14;

/// The name of the segment that begins at `start`.
pub(crate) fn segment_name(start: u64) -> String {
    format!("{start:020}.log")
}

/// The name of that segment's index.
pub(crate) fn index_name(start: u64) -> String {
    format!("{start:020}.idx")
}

/// The start of the segment with this name, if it is one.
pub(crate) fn parse_segment_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 20)?;
    digits.parse().ok().filter(|start| *start <= LONGEST_LOG)
}

/// Start and length of every segment in a folder, in order.
pub(crate) fn list_segments(dir: &Path) -> Vec<(u64, u64)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut segments: Vec<(u64, u64)> = entries
        .take(NAMES_LIMIT)
        .flatten()
        .filter_map(|entry| {
            let start = parse_segment_name(entry.file_name().to_str()?)?;
            let metadata = fs::symlink_metadata(entry.path()).ok()?;
            let is_ours = metadata.is_file() && metadata.len() <= LONGEST_SEGMENT;
            is_ours.then_some((start, metadata.len()))
        })
        .collect();
    segments.sort_unstable();
    segments
}

/// The log's end as the files show it.
pub(crate) fn end_on_disk(dir: &Path) -> u64 {
    list_segments(dir).last().map_or(0, |(start, length)| start + length)
}
