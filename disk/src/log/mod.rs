//! The log: one file that holds a disk's events in order, and the data that was written.
//!
//! # Format, version 1
//! All numbers are little-endian. The file is a header of 64 bytes, then entries back to back.
//!
//! | header bytes | holds |
//! |---|---|
//! | 0–7 | `PLUGDISK` |
//! | 8–11 | version, 1 |
//! | 12–15 | flags: bit 0, events are recorded (otherwise the rest of the file is bare data) |
//! | 16–23 | size of the disk in bytes |
//! | 24–31 | seed |
//! | 32–35 | atomic unit in bytes: 512 or 4096 |
//! | 36–39 | honesty: 0 none, 1 volatile, 2 lies-on-flush |
//! | 40–59 | zero |
//! | 60–63 | CRC-32 of bytes 0–59 |
//!
//! | entry bytes | holds |
//! |---|---|
//! | 0–3 | `PLGE` |
//! | 4 | kind: 1 submit, 2 complete, 3 mark, 4 cut, 5 trailer |
//! | 5 | operation of a submit: 1 write, 2 write zeroes, 3 trim, 4 flush |
//! | 6 | flags of a submit: bit 0, FUA |
//! | 7 | zero |
//! | 8–15 | sequence number; strictly rising; a trailer repeats the last one |
//! | 16–23 | request number of a submit or complete; in a trailer, how many entries came before |
//! | 24–31 | offset on the disk in bytes |
//! | 32–39 | length on the disk in bytes |
//! | 40–43 | errno of a complete, 0 for success |
//! | 44–47 | payload length: a write's data, a mark's text |
//! | 48–51 | CRC-32 of the payload |
//! | 52–55 | CRC-32 of bytes 0–51 |
//! | 56– | payload |
//!
//! An entry counts only when it is whole and both checksums fit. A recording ends with a trailer
//! when it was closed in good order or the power was cut on purpose; a file without one was
//! killed, and is [`End::Truncated`]. Reads are counted and not recorded.

mod entry;
mod format;
mod recording;
mod writer;

pub use entry::{Complete, End, Entry, Mark, Operation, Submit};
pub use recording::Recording;

pub(crate) use format::{Frame, Kind, LogHeader};
pub(crate) use writer::LogWriter;
