//! What a disk is told to be, when it is told to die, and why it takes nothing more.

use std::time::Instant;

use crate::units::{AtomicUnit, CutPoint, Honesty, Seed, Seq};

/// What a disk is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// What the cache promises and keeps.
    pub honesty: Honesty,
    /// What a power cut leaves whole.
    pub unit: AtomicUnit,
    /// Where this disk's random choices begin.
    pub seed: Seed,
    /// Whether events are recorded. Without, the log file is a bare store of data: there are no
    /// marks and no power cut, and only the content can be had.
    pub record: bool,
}

impl Default for DiskConfig {
    fn default() -> DiskConfig {
        DiskConfig {
            honesty: Honesty::default(),
            unit: AtomicUnit::default(),
            seed: Seed::default(),
            record: true,
        }
    }
}

/// When to cut the power. Requests are counted from the beginning of the recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutTrigger {
    /// As the n-th recorded request (reads are none) has come in, before it is answered.
    Request(u64),
    /// As the n-th flush has come in, before it is answered.
    Flush(u64),
    /// As the next mark that begins with these bytes has been recorded.
    Mark(Vec<u8>),
    /// As this event has been recorded.
    Seq(Seq),
    /// At this moment: nothing that comes later is recorded. Where nothing comes, somebody has to
    /// be waiting in [`crate::Disk::wait_cut`].
    Time(Instant),
}

/// Why a disk takes nothing more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Its power was cut.
    #[error("the disk's power was cut at event {0}")]
    Cut(CutPoint),
    /// Its recording was finished.
    #[error("the disk's recording is finished")]
    Finished,
    /// The log could not be written; the recording is not to be trusted beyond its last whole entry.
    #[error("the disk's log cannot be written: {0}")]
    LogFailed(String),
    /// The disk records no events.
    #[error("the disk does not record events")]
    NotRecording,
}
