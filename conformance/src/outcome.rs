//! What a system call answered, in a form in which two filesystems can be compared.
//!
//! Left out are inode and device numbers, which differ by right, and clock readings:
//! a time near now is [`When::Now`], any other is exact, since sequences set only times
//! that are far away.

use std::fmt::{self, Debug, Formatter};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Statx, StatxFlags};
use rustix::io::Errno;

/// A result, or the errno.
pub(crate) type Outcome = Result<Value, Errno>;

/// What a successful call returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Done,
    Number(u64),
    Flag(bool),
    Bytes(Bytes),
    Stat(Box<Stat>),
    /// Names with kinds, in the order in which they came.
    Names(Vec<String>),
    Text(String),
}

/// File contents; shown as a length and a beginning.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Bytes(pub Vec<u8>);

impl Debug for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let head = &self.0[..self.0.len().min(24)];
        write!(
            f,
            "{} bytes, hash {:016x}: {head:02x?}…",
            self.0.len(),
            hash(&self.0)
        )
    }
}

/// FNV-1a, so that equal hashes in two reports mean equal bytes.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A time, as exactly as it can be foreseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Within an hour of now.
    Now,
    /// Seconds since 1970, nanoseconds.
    At(i64, u32),
}

/// What statx(2) said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub mode: u32,
    pub links: u32,
    pub user: u32,
    pub group: u32,
    pub size: u64,
    pub device: (u32, u32),
    pub block_size: u32,
    pub access: When,
    pub modification: When,
    pub change: When,
    /// Whether a birth time was given: it cannot be set, so it is now.
    pub birth: Option<When>,
}

impl Stat {
    pub(crate) fn of(statx: &Statx) -> Self {
        let when = |time: rustix::fs::StatxTimestamp| When::of(time.tv_sec, time.tv_nsec);
        let mask = StatxFlags::from_bits_retain(statx.stx_mask);
        Stat {
            mode: statx.stx_mode.into(),
            links: statx.stx_nlink,
            user: statx.stx_uid,
            group: statx.stx_gid,
            size: statx.stx_size,
            device: (statx.stx_rdev_major, statx.stx_rdev_minor),
            block_size: statx.stx_blksize,
            access: when(statx.stx_atime),
            modification: when(statx.stx_mtime),
            change: when(statx.stx_ctime),
            birth: mask
                .contains(StatxFlags::BTIME)
                .then(|| when(statx.stx_btime)),
        }
    }
}

impl When {
    fn of(seconds: i64, nanoseconds: u32) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs().cast_signed());
        if (now - 3600..=now + 3600).contains(&seconds) {
            When::Now
        } else {
            When::At(seconds, nanoseconds)
        }
    }
}
