//! The protocol's numbers, under the protocol's own names, and its two fixed messages.

pub(super) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const IHAVEOPT: u64 = 0x4948_4156_454F_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

pub(super) const FLAG_FIXED_NEWSTYLE: u16 = 1;
pub(super) const FLAG_NO_ZEROES: u16 = 2;

pub(super) const OPT_EXPORT_NAME: u32 = 1;
pub(super) const OPT_ABORT: u32 = 2;
pub(super) const OPT_LIST: u32 = 3;
pub(super) const OPT_INFO: u32 = 6;
pub(super) const OPT_GO: u32 = 7;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_SERVER: u32 = 2;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_ERR_UNSUP: u32 = (1 << 31) | 1;
pub(super) const REP_ERR_INVALID: u32 = (1 << 31) | 3;
pub(super) const REP_ERR_UNKNOWN: u32 = (1 << 31) | 6;

pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const TRANSMIT_HAS_FLAGS: u16 = 1;
pub(super) const TRANSMIT_READ_ONLY: u16 = 1 << 1;
pub(super) const TRANSMIT_SEND_FLUSH: u16 = 1 << 2;
pub(super) const TRANSMIT_SEND_FUA: u16 = 1 << 3;
pub(super) const TRANSMIT_SEND_TRIM: u16 = 1 << 5;
pub(super) const TRANSMIT_SEND_WRITE_ZEROES: u16 = 1 << 6;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_TRIM: u16 = 4;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;

pub(super) const CMD_FLAG_FUA: u16 = 1;
pub(super) const CMD_FLAG_NO_HOLE: u16 = 2;

pub(super) const EPERM: u32 = 1;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;

/// The largest read or write that is served, in bytes: what QEMU's client sends at most.
pub(super) const MAX_PAYLOAD: u32 = 32 << 20;

/// A request's fixed part.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHead {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl RequestHead {
    pub(super) const BYTES: usize = 28;

    /// `None` where no request begins.
    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Option<RequestHead> {
        let u16_at = |at: usize| u16::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        (u32_at(0) == REQUEST_MAGIC).then(|| RequestHead {
            flags: u16_at(4),
            command: u16_at(6),
            cookie: u64_at(8),
            offset: u64_at(16),
            length: u32_at(24),
        })
    }
}

/// How long a simple reply is without its data.
pub(super) const SIMPLE_REPLY_BYTES: usize = 16;

pub(super) fn simple_reply(error: u32, cookie: u64) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_BYTES];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}
