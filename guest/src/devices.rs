//! Disks by names that do not race.
//!
//! `vda` and `vdb` change places from boot to boot; serials do not.

use std::{
    fs,
    num::NonZeroU64,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use plugpull_protocol::Device;

/// The device node of a disk or device-mapper device.
///
/// # Errors
/// When there is none; the message lists the serials that exist.
pub(crate) fn node(device: &Device) -> Result<PathBuf> {
    match device {
        Device::Serial(serial) => by_serial(serial),
        Device::Mapper(name) => by_mapper(name),
    }
}

/// The same command with every `{device}` in it being the node of this disk,
/// which is looked for only where it is named.
///
/// # Errors
/// As [`node`].
pub(crate) fn fill(argv: Vec<String>, device: &Device) -> Result<Vec<String>> {
    const NAME: &str = "{device}";
    if !argv.iter().any(|word| word.contains(NAME)) {
        return Ok(argv);
    }
    let node = node(device)?;
    let node = node.to_str().context("a device's name is ASCII")?;
    Ok(argv.iter().map(|word| word.replace(NAME, node)).collect())
}

/// `/dev/NAME` of the disk whose serial this is.
pub(crate) fn by_serial(serial: &str) -> Result<PathBuf> {
    let mut seen = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        // virtio-blk has `serial` beside the queue, nvme and scsi below the
        // device; scsi keeps it in the unit's VPD page 80, after a header.
        let found = ["serial", "device/serial"]
            .iter()
            .find_map(|file| fs::read_to_string(entry.path().join(file)).ok())
            .or_else(|| {
                let page = fs::read(entry.path().join("device/vpd_pg80")).ok()?;
                Some(String::from_utf8_lossy(page.get(4..)?).into_owned())
            });
        if let Some(found) = found {
            if found.trim() == serial {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
            seen.push(found.trim().to_owned());
        }
    }
    bail!("no disk has the serial {serial:?}; there are {seen:?}")
}

fn by_mapper(name: &str) -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("dm/name")).is_ok_and(|found| found.trim() == name)
        {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    bail!("there is no device-mapper device {name:?}")
}

/// Directory of the device in sysfs.
pub(crate) fn sysfs(node: &Path) -> Result<PathBuf> {
    let name = node
        .file_name()
        .with_context(|| format!("{} names no device", node.display()))?;
    Ok(Path::new("/sys/block").join(name))
}

/// Size in 512-byte sectors.
pub(crate) fn sectors(node: &Path) -> Result<u64> {
    let path = sysfs(node)?.join("size");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("{} holds {text:?}", path.display()))
}

/// Write back and forget the block device's own cache, so that a content that
/// changed below is read anew (`BLKFLSBUF`, block/ioctl.c).
pub(crate) fn flush_buffers(node: &Path) -> Result<()> {
    let device = fs::File::open(node).with_context(|| format!("open {}", node.display()))?;
    blkflsbuf(&device).with_context(|| format!("BLKFLSBUF on {}", node.display()))?;
    Ok(())
}

/// Begin to read these stretches, first byte and length, into the disk's cache,
/// which is there for as long as the returned file is open, and for as long as
/// nobody sets another block size (set_blocksize() in block/bdev.c).
pub(crate) fn read_ahead(
    node: &Path,
    block_bytes: u32,
    stretches: &[(u64, u64)],
) -> Result<fs::File> {
    let device = fs::File::open(node).with_context(|| format!("open {}", node.display()))?;
    set_block_size(&device, block_bytes)
        .with_context(|| format!("set the block size of {}", node.display()))?;
    for (first, length) in stretches {
        let length = NonZeroU64::new(*length);
        rustix::fs::fadvise(&device, *first, length, rustix::fs::Advice::WillNeed)
            .with_context(|| format!("read {} ahead", node.display()))?;
    }
    Ok(device)
}

#[expect(unsafe_code, reason = "rustix has no wrapper for BLKBSZSET")]
fn set_block_size(device: &fs::File, bytes: u32) -> rustix::io::Result<()> {
    const BLKBSZSET: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<usize>(0x12, 113);
    let bytes = i32::try_from(bytes).map_err(|_| rustix::io::Errno::INVAL)?;
    // SAFETY: BLKBSZSET reads one int, whatever its number says (block/ioctl.c).
    unsafe {
        let set = rustix::ioctl::Setter::<BLKBSZSET, i32>::new(bytes);
        rustix::ioctl::ioctl(device.as_fd(), set)
    }
}

#[expect(unsafe_code, reason = "rustix has no wrapper for BLKFLSBUF")]
fn blkflsbuf(device: &fs::File) -> rustix::io::Result<()> {
    const BLKFLSBUF: rustix::ioctl::Opcode = rustix::ioctl::opcode::none(0x12, 97);
    // SAFETY: BLKFLSBUF takes no argument and returns nothing through memory.
    unsafe { rustix::ioctl::ioctl(device.as_fd(), rustix::ioctl::NoArg::<BLKFLSBUF>::new()) }
}

/// `MAJOR:MINOR` as the kernel's tracepoints encode it: `major << 20 | minor`.
pub(crate) fn kernel_dev(node: &Path) -> Result<u64> {
    let path = sysfs(node)?.join("dev");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (major, minor) = text
        .trim()
        .split_once(':')
        .with_context(|| format!("{} holds {text:?}", path.display()))?;
    Ok(major.parse::<u64>()? << 20 | minor.parse::<u64>()?)
}

/// Tell the kernel how to see the disk's write cache
/// (Documentation/block/writeback_cache_control.rst).
pub(crate) fn set_write_cache(node: &Path, volatile: bool) -> Result<()> {
    let path = sysfs(node)?.join("queue/write_cache");
    let word = if volatile {
        "write back"
    } else {
        "write through"
    };
    fs::write(&path, word).with_context(|| format!("set {} to {word:?}", path.display()))
}

/// Whether the kernel takes the disk for one without a volatile cache.
pub(crate) fn is_write_through(node: &Path) -> Result<bool> {
    let path = sysfs(node)?.join("queue/write_cache");
    let word = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(word.trim() == "write through")
}
