//! The handshake, up to the point where the client has chosen the export.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};

use crate::device::Disk;
use crate::nbd::protocol::{
    FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, IHAVEOPT, INFO_BLOCK_SIZE, INFO_EXPORT, MAX_PAYLOAD,
    NBDMAGIC, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPTION_REPLY_MAGIC, REP_ACK,
    REP_ERR_INVALID, REP_ERR_UNKNOWN, REP_ERR_UNSUP, REP_INFO, REP_SERVER, TRANSMIT_HAS_FLAGS,
    TRANSMIT_READ_ONLY, TRANSMIT_SEND_FLUSH, TRANSMIT_SEND_FUA, TRANSMIT_SEND_TRIM,
    TRANSMIT_SEND_WRITE_ZEROES,
};
use crate::units::{Honesty, SECTOR_BYTES};

/// No option we understand is longer: a name has at most 4096 bytes.
const MAX_OPTION_BYTES: u32 = 64 << 10;

/// The size of request that serves every lower filesystem well, in bytes.
const PREFERRED_BLOCK: u32 = 4096;

#[derive(PartialEq, Eq)]
pub(super) enum Outcome {
    /// The client goes on to send requests.
    Transmission,
    /// The client has had enough.
    Goodbye,
}

/// Leads the handshake.
///
/// # Errors
/// The client broke the protocol or the connection; it is to be disconnected.
pub(super) fn negotiate(
    disk: &Disk,
    input: &mut impl Read,
    output: &mut impl Write,
) -> Result<Outcome> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(NBDMAGIC.to_be_bytes());
    greeting.extend(IHAVEOPT.to_be_bytes());
    greeting.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    output.write_all(&greeting)?;

    let flags = read_u32(input).context("read the client's flags")?;
    let known = u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
    ensure!(flags & !known == 0, "unknown client flags {flags:#x}");
    let no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;

    loop {
        let magic = read_array::<8>(input).context("read an option")?;
        ensure!(
            u64::from_be_bytes(magic) == IHAVEOPT,
            "no option begins with {magic:02x?}"
        );
        let option = read_u32(input)?;
        let length = read_u32(input)?;
        ensure!(
            length <= MAX_OPTION_BYTES,
            "option {option} with {length} bytes of data"
        );
        let mut data = vec![0; length as usize];
        input.read_exact(&mut data)?;
        match option {
            OPT_EXPORT_NAME => {
                ensure!(
                    data.is_empty(),
                    "no export named {}",
                    String::from_utf8_lossy(&data)
                );
                output.write_all(&export_name_reply(disk, no_zeroes))?;
                return Ok(Outcome::Transmission);
            }
            OPT_ABORT => {
                // The client may be gone before it has read this, which is no failure.
                let _ = reply(output, option, REP_ACK, &[]);
                return Ok(Outcome::Goodbye);
            }
            OPT_LIST if data.is_empty() => {
                reply(output, option, REP_SERVER, &0_u32.to_be_bytes())?;
                reply(output, option, REP_ACK, &[])?;
            }
            OPT_LIST => reply(output, option, REP_ERR_INVALID, &[])?,
            OPT_INFO | OPT_GO => match requested_name(&data) {
                Err(_) => reply(output, option, REP_ERR_INVALID, &[])?,
                Ok(name) if !name.is_empty() => reply(output, option, REP_ERR_UNKNOWN, &[])?,
                Ok(_) => {
                    describe(disk, output, option)?;
                    if option == OPT_GO {
                        return Ok(Outcome::Transmission);
                    }
                }
            },
            _ => reply(output, option, REP_ERR_UNSUP, &[])?,
        }
    }
}

fn transmission_flags(disk: &Disk) -> u16 {
    if disk.is_read_only() {
        return TRANSMIT_HAS_FLAGS | TRANSMIT_READ_ONLY;
    }
    let writable = TRANSMIT_HAS_FLAGS | TRANSMIT_SEND_TRIM | TRANSMIT_SEND_WRITE_ZEROES;
    match disk.config().honesty {
        // Write-through: there is no cache to flush, and every write is as good as FUA.
        Honesty::None => writable,
        Honesty::Volatile | Honesty::LiesOnFlush => {
            writable | TRANSMIT_SEND_FLUSH | TRANSMIT_SEND_FUA
        }
    }
}

fn export_name_reply(disk: &Disk, no_zeroes: bool) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(134);
    bytes.extend(disk.size().0.to_be_bytes());
    bytes.extend(transmission_flags(disk).to_be_bytes());
    if !no_zeroes {
        bytes.extend([0; 124]);
    }
    bytes
}

/// The name in the data of an `INFO` or `GO`; which facts it asks for does not matter, it gets all.
fn requested_name(data: &[u8]) -> Result<&[u8]> {
    let (length, rest) = data.split_at_checked(4).context("a name's length")?;
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    let (name, rest) = rest.split_at_checked(length).context("a name")?;
    let (count, facts) = rest.split_at_checked(2).context("a count of facts")?;
    let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
    if facts.len() != count * 2 {
        bail!("{count} facts in {} bytes", facts.len());
    }
    Ok(name)
}

fn describe(disk: &Disk, output: &mut impl Write, option: u32) -> Result<()> {
    let mut export = Vec::with_capacity(12);
    export.extend(INFO_EXPORT.to_be_bytes());
    export.extend(disk.size().0.to_be_bytes());
    export.extend(transmission_flags(disk).to_be_bytes());
    reply(output, option, REP_INFO, &export)?;
    let mut blocks = Vec::with_capacity(14);
    blocks.extend(INFO_BLOCK_SIZE.to_be_bytes());
    blocks.extend((SECTOR_BYTES as u32).to_be_bytes());
    blocks.extend(PREFERRED_BLOCK.to_be_bytes());
    blocks.extend(MAX_PAYLOAD.to_be_bytes());
    reply(output, option, REP_INFO, &blocks)?;
    reply(output, option, REP_ACK, &[])
}

fn reply(output: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> Result<()> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    output.write_all(&bytes)?;
    Ok(())
}

fn read_array<const N: usize>(input: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_u32(input: &mut impl Read) -> std::io::Result<u32> {
    read_array(input).map(u32::from_be_bytes)
}
