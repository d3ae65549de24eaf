//! The framing of log bytes: between agent and server, and between server and CLI.

/// Bytes of a frame's header: kind, offset, time, length.
pub const LOG_FRAME_HEADER: usize = 1 + 8 + 8 + 4;

/// The longest payload of one frame, in bytes.
pub const LOG_FRAME_MAX_PAYLOAD: usize = 64 * 1024;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFrameKind {
    /// Bytes of the log that start at `offset`.
    Data,
    /// The bytes before `offset` that have not been sent are lost: the host's store was full.
    Gap,
    /// The log ends at `offset`.
    End,
}

/// The header of one frame; the payload of `length` bytes follows it.
///
/// On the wire: one byte of kind (0 data, 1 gap, 2 end), then offset (u64), time in microseconds since the
/// epoch (i64) and length (u32), all big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogFrame {
    /// What the frame says.
    pub kind: LogFrameKind,
    /// The offset of the payload's first byte in the log.
    pub offset: u64,
    /// When the bytes were written, in microseconds since the epoch.
    pub time_micros: i64,
    /// The payload's length in bytes; 0 unless the kind is data.
    pub length: u32,
}

impl LogFrame {
    /// The header as bytes.
    pub fn encode(&self) -> [u8; LOG_FRAME_HEADER] {
        let mut bytes = [0; LOG_FRAME_HEADER];
        bytes[0] = match self.kind {
            LogFrameKind::Data => 0,
            LogFrameKind::Gap => 1,
            LogFrameKind::End => 2,
        };
        bytes[1..9].copy_from_slice(&self.offset.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.time_micros.to_be_bytes());
        bytes[17..21].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    /// Reads a header. None: the kind is unknown or the payload too long, so the stream is broken.
    pub fn decode(bytes: &[u8; LOG_FRAME_HEADER]) -> Option<LogFrame> {
        let kind = match bytes[0] {
            0 => LogFrameKind::Data,
            1 => LogFrameKind::Gap,
            2 => LogFrameKind::End,
            _ => return None,
        };
        let mut offset = [0; 8];
        offset.copy_from_slice(&bytes[1..9]);
        let mut time = [0; 8];
        time.copy_from_slice(&bytes[9..17]);
        let mut length = [0; 4];
        length.copy_from_slice(&bytes[17..21]);
        let length = u32::from_be_bytes(length);
        let too_long = length as usize > LOG_FRAME_MAX_PAYLOAD;
        (!too_long).then_some(LogFrame {
            kind,
            offset: u64::from_be_bytes(offset),
            time_micros: i64::from_be_bytes(time),
            length,
        })
    }
}
