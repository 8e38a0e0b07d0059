//! Logs of others: dm-log-writes of the kernel, and QEMU's blklogwrites, which writes the same
//! format.
//!
//! The format (drivers/md/dm-log-writes.c, block/blklogwrites.c): a sector with magic, version,
//! number of entries and size of a sector; then for each entry a sector with place and length in
//! sectors, flags and the length of its data, and the data, filled up to a whole sector. A mark's
//! text stands in the entry's own sector. All numbers are little-endian.
//!
//! Neither log has what this crate records: when a request was submitted. What an import takes
//! from one is what it holds, and no more:
//!
//! * **dm-log-writes** keeps a write back until a flush that was issued after the write's
//!   completion has completed, and logs it before that flush. So what stands before a flush is
//!   durable with it, exactly. What no flush followed is logged when the target goes away, and
//!   lost when the machine does. Failed writes are logged like others.
//! * **blklogwrites** logs a write when it completes, also while a flush is under way: what stands
//!   before a flush may have completed after that was issued, and then only seems durable.
//!
//! In both a write is imported as answered where it stands, so nothing is in flight at any cut. A
//! log whose machine was killed has a number of entries that is too small: see [`Count`].
//!
//! The first is held against the kernel's own target in a guest: `tests/suites/interop.rs`.
//!
//! An export is what dm-log-writes would have logged of the same requests: at each successful
//! flush what had completed when it was submitted, FUA writes when they complete, the rest at the
//! end; writes that failed or were never answered not at all.

mod export;
mod import;
#[cfg(test)]
mod tests;

pub use export::export;
pub use import::{Count, import};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;
const METADATA: u64 = 16;
/// Bytes of an entry's four numbers.
const ENTRY_BYTES: usize = 32;
/// Bytes of the first sector's three numbers and the size of a sector.
const SUPER_BYTES: usize = 28;
