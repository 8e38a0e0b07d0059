//! Bytes to values and back for the log's header and entries; see the parent module for the layout.

use crate::log::Operation;
use crate::units::{AtomicUnit, ByteCount, Honesty, Seed};

pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const FRAME_BYTES: usize = 56;
const HEADER_MAGIC: &[u8; 8] = b"PLUGDISK";
const FRAME_MAGIC: &[u8; 4] = b"PLGE";
const VERSION: u32 = 1;
const FLAG_RECORDED: u32 = 1;
const FLAG_FUA: u8 = 1;

/// What a log says of the disk it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogHeader {
    pub(crate) recorded: bool,
    pub(crate) size: ByteCount,
    pub(crate) seed: Seed,
    pub(crate) unit: AtomicUnit,
    pub(crate) honesty: Honesty,
}

impl LogHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(HEADER_MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let flags = if self.recorded { FLAG_RECORDED } else { 0 };
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.seed.0.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.unit.bytes().to_le_bytes());
        let honesty: u32 = match self.honesty {
            Honesty::None => 0,
            Honesty::Volatile => 1,
            Honesty::LiesOnFlush => 2,
        };
        bytes[36..40].copy_from_slice(&honesty.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header, or what is wrong with it.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<LogHeader, String> {
        if &bytes[0..8] != HEADER_MAGIC {
            return Err("it does not begin with PLUGDISK".into());
        }
        if u32_at(bytes, 60) != crc32fast::hash(&bytes[..60]) {
            return Err("the header's checksum does not fit".into());
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(format!(
                "its version is {version}; this build reads {VERSION}"
            ));
        }
        Ok(LogHeader {
            recorded: u32_at(bytes, 12) & FLAG_RECORDED != 0,
            size: ByteCount(u64_at(bytes, 16)),
            seed: Seed(u64_at(bytes, 24)),
            unit: AtomicUnit::try_from(u32_at(bytes, 32))?,
            honesty: match u32_at(bytes, 36) {
                0 => Honesty::None,
                1 => Honesty::Volatile,
                2 => Honesty::LiesOnFlush,
                other => return Err(format!("honesty {other} is unknown")),
            },
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Submit { operation: Operation, fua: bool },
    Complete,
    Mark,
    Cut,
    Trailer,
}

/// The fixed part of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) seq: u64,
    pub(crate) id: u64,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) errno: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) payload_crc: u32,
}

impl Frame {
    /// An entry with nothing but a kind.
    pub(crate) fn bare(kind: Kind) -> Frame {
        Frame {
            kind,
            seq: 0,
            id: 0,
            offset: 0,
            length: 0,
            errno: 0,
            payload_bytes: 0,
            payload_crc: 0,
        }
    }

    pub(crate) fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        bytes[0..4].copy_from_slice(FRAME_MAGIC);
        let (kind, operation, flags) = match self.kind {
            Kind::Submit { operation, fua } => {
                (1, operation_code(operation), if fua { FLAG_FUA } else { 0 })
            }
            Kind::Complete => (2, 0, 0),
            Kind::Mark => (3, 0, 0),
            Kind::Cut => (4, 0, 0),
            Kind::Trailer => (5, 0, 0),
        };
        bytes[4..7].copy_from_slice(&[kind, operation, flags]);
        bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.errno.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.payload_crc.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..52]);
        bytes[52..56].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The entry, or what is wrong with it.
    pub(crate) fn decode(bytes: &[u8; FRAME_BYTES]) -> Result<Frame, String> {
        if &bytes[0..4] != FRAME_MAGIC {
            return Err("no entry begins here".into());
        }
        if u32_at(bytes, 52) != crc32fast::hash(&bytes[..52]) {
            return Err("an entry's checksum does not fit".into());
        }
        let kind = match (bytes[4], bytes[5]) {
            (1, code) => Kind::Submit {
                operation: operation_of(code)?,
                fua: bytes[6] & FLAG_FUA != 0,
            },
            (2, _) => Kind::Complete,
            (3, _) => Kind::Mark,
            (4, _) => Kind::Cut,
            (5, _) => Kind::Trailer,
            (other, _) => return Err(format!("an entry of unknown kind {other}")),
        };
        Ok(Frame {
            kind,
            seq: u64_at(bytes, 8),
            id: u64_at(bytes, 16),
            offset: u64_at(bytes, 24),
            length: u64_at(bytes, 32),
            errno: u32_at(bytes, 40),
            payload_bytes: u32_at(bytes, 44),
            payload_crc: u32_at(bytes, 48),
        })
    }
}

fn operation_code(operation: Operation) -> u8 {
    match operation {
        Operation::Write => 1,
        Operation::WriteZeroes => 2,
        Operation::Trim => 3,
        Operation::Flush => 4,
    }
}

fn operation_of(code: u8) -> Result<Operation, String> {
    match code {
        1 => Ok(Operation::Write),
        2 => Ok(Operation::WriteZeroes),
        3 => Ok(Operation::Trim),
        4 => Ok(Operation::Flush),
        other => Err(format!("a request with unknown operation {other}")),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]))
}
