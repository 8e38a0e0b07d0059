//! The quantities of this crate, each a type of its own so that they cannot be confused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The smallest addressable unit of every disk, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// A position in the one order that runs over submissions, completions and marks.
///
/// The first event of a recording is number 1; 0 lies before everything.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// A moment at which the power goes: every event up to and *including* this one has happened.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CutPoint(pub Seq);

/// The number of a recorded request, dense from 0 in the order of submission.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RequestId(pub u64);

/// How many flushes had succeeded before a moment.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// Where a stream of random choices begins.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seed(pub u64);

impl Seed {
    /// An independent seed for one purpose, so that two choices never share a stream.
    ///
    /// The mixing is SplitMix64's finaliser (Steele, Lea and Flood, 2014).
    pub fn derive(self, purpose: u64) -> Seed {
        let mut z = self
            .0
            .wrapping_add(purpose.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        Seed(z ^ (z >> 31))
    }

    pub(crate) fn rng(self) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.0)
    }
}

/// A number of bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// A number of mebibytes.
    pub const fn mib(mebibytes: u64) -> ByteCount {
        ByteCount(mebibytes << 20)
    }

    /// How many whole sectors these bytes fill.
    pub const fn sectors(self) -> u64 {
        self.0 / SECTOR_BYTES
    }
}

/// The number of a 512-byte sector on a disk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Sector(pub u64);

impl Sector {
    /// The offset of the sector's first byte.
    pub const fn byte_offset(self) -> u64 {
        self.0 * SECTOR_BYTES
    }
}

macro_rules! display_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_as_number!(Seq, CutPoint, RequestId, Epoch, Seed, ByteCount, Sector);

/// What a disk's cache promises, and whether it keeps the promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Honesty {
    /// Write-through: what is completed is durable. No flush is advertised.
    None,
    /// A volatile write cache that keeps its promises.
    #[default]
    Volatile,
    /// Answers every flush and FUA with success, and at a cut has kept only a prefix of the
    /// completed writes: a share between 30 % and 70 %, drawn once from the seed.
    LiesOnFlush,
}

impl fmt::Display for Honesty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Honesty::None => "none",
            Honesty::Volatile => "volatile",
            Honesty::LiesOnFlush => "lies-on-flush",
        })
    }
}

impl FromStr for Honesty {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Honesty::None, Honesty::Volatile, Honesty::LiesOnFlush]
            .into_iter()
            .find(|honesty| honesty.to_string() == name)
            .ok_or_else(|| format!("expected none, volatile or lies-on-flush, not `{name}`"))
    }
}

/// The largest aligned piece that a power cut leaves whole, never torn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum AtomicUnit {
    /// One 512-byte sector.
    U512,
    /// One 4096-byte physical block.
    #[default]
    U4096,
}

impl AtomicUnit {
    /// The unit's size in bytes.
    pub const fn bytes(self) -> u32 {
        match self {
            AtomicUnit::U512 => 512,
            AtomicUnit::U4096 => 4096,
        }
    }
}

impl From<AtomicUnit> for u32 {
    fn from(unit: AtomicUnit) -> u32 {
        unit.bytes()
    }
}

impl TryFrom<u32> for AtomicUnit {
    type Error = String;

    fn try_from(bytes: u32) -> Result<Self, String> {
        match bytes {
            512 => Ok(AtomicUnit::U512),
            4096 => Ok(AtomicUnit::U4096),
            other => Err(format!("an atomic unit is 512 or 4096 bytes, not {other}")),
        }
    }
}
