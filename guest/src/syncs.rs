//! Sees every call that asks a filesystem to make something durable, whoever makes it: fsync(2),
//! fdatasync(2), msync(2), sync(2), syncfs(2) and synchronous writes.
//!
//! There are no tracepoints that all filesystems share, and a system call names a descriptor, not
//! a file. So the filesystems' own functions are probed (Documentation/trace/kprobetrace.rst):
//! each gets the open file, from which follow the filesystem and the inode; where these lie in the
//! kernel's structures is in its own description of its types. The functions are called through
//! pointers, so that no compiler can have put them into their callers.
//!
//! Seen is that a call was made, in the order in which calls entered the kernel; not whether it
//! succeeded. On FUSE a synchronous write need not become an fsync, so such writes are seen too.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use plugpull_protocol::syncs::{Level, Synced};

use crate::btf::Types;

const TRACING: &str = "/sys/kernel/tracing";
/// A trace instance of its own, so that nothing else's events are seen.
const INSTANCE: &str = "/sys/kernel/tracing/instances/plugpull-syncs";
const GROUP: &str = "plugpull_syncs";

/// Functions that get an open file.
const OF_FILES: [&str; 7] = [
    "ext4_sync_file",
    "xfs_file_fsync",
    "xfs_dir_fsync",
    "btrfs_sync_file",
    "f2fs_sync_file",
    "fuse_fsync",
    "fuse_dir_fsync",
];
/// Functions that get a filesystem, and whether to wait.
const OF_FILESYSTEMS: [&str; 5] = [
    "ext4_sync_fs",
    "xfs_fs_sync_fs",
    "btrfs_sync_fs",
    "f2fs_sync_fs",
    "fuse_sync_fs",
];
/// The function of FUSE that gets a write.
const OF_WRITES: &str = "fuse_file_write_iter";
/// A write that is to be durable when it returns (include/linux/fs.h, `IOCB_DSYNC`).
const DSYNC: u32 = 2;
/// A directory (stat(2)).
const DIRECTORY: u32 = 0o040_000;
/// What of a mode says that.
const FORMAT: u32 = 0o170_000;

/// A running watch.
pub(crate) struct Syncs {
    pipe: File,
    lower: u64,
    mount: u64,
    /// The start of a line whose end has not been read.
    rest: Vec<u8>,
}

impl Syncs {
    /// Watch the filesystem that is mounted at `lower` and the one at `mount`, which may be the
    /// same.
    pub(crate) fn watch(lower: &str, mount: &str) -> Result<Self> {
        let (lower, mount) = (device_of(lower)?, device_of(mount)?);
        probe().context("probe the functions that sync")?;
        fs::create_dir_all(INSTANCE).with_context(|| format!("make {INSTANCE}"))?;
        let instance = Path::new(INSTANCE);
        let events = instance.join("events").join(GROUP);
        let ours = format!("(dev == {lower} || dev == {mount})");
        for event in fs::read_dir(&events).with_context(|| format!("list {GROUP}"))? {
            let event = event?;
            let more = match event.file_name().to_string_lossy().split_once('_') {
                Some(("write", _)) => format!(" && (flags & {DSYNC})"),
                Some(("fs", _)) => String::from(" && wait == 1"),
                _ => String::new(),
            };
            if event.path().is_dir() {
                set(&event.path().join("filter"), &format!("{ours}{more}"))?;
            }
        }
        set(&events.join("enable"), "1")?;
        let pipe = instance.join("trace_pipe");
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(&pipe)
            .with_context(|| format!("open {}", pipe.display()))?;
        Ok(Self {
            pipe,
            lower,
            mount,
            rest: Vec::new(),
        })
    }

    /// What was seen since the last time.
    pub(crate) fn news(&mut self) -> Result<Vec<Synced>> {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => self.rest.extend(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("read what was traced"),
            }
        }
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.rest.drain(..whole).collect();
        let lines = String::from_utf8_lossy(&lines);
        let mut news = Vec::new();
        for line in lines.lines() {
            if line.contains("LOST") {
                anyhow::bail!("the kernel lost events: {line}");
            }
            news.extend(self.understood(line));
        }
        Ok(news)
    }

    /// `NAME-PID [CPU] … TIME: EVENT: (FUNCTION+0x4/0x280 [MODULE]) dev=8388624 ino=12 mode=33188`.
    fn understood(&self, line: &str) -> Option<Synced> {
        let value = |name: &str| -> Option<u64> {
            let (_, rest) = line.rsplit_once(&format!(" {name}="))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let dev = value("dev")?;
        let level = if dev == self.mount {
            Level::Mount
        } else if dev == self.lower {
            Level::Lower
        } else {
            return None;
        };
        let mode = value("mode").unwrap_or_default();
        Some(Synced {
            level,
            inode: value("ino").unwrap_or_default(),
            directory: mode & u64::from(FORMAT) == u64::from(DIRECTORY),
        })
    }
}

/// Make the probes; functions of filesystems that this kernel has not loaded are left out.
fn probe() -> Result<()> {
    let types = fs::read("/sys/kernel/btf/vmlinux").context("read the kernel's types")?;
    let [inode, sb, ino, mode, dev, filp, flags] = Types::read(&types)?.offsets([
        ("file", "f_inode"),
        ("inode", "i_sb"),
        ("inode", "i_ino"),
        ("inode", "i_mode"),
        ("super_block", "s_dev"),
        ("kiocb", "ki_filp"),
        ("kiocb", "ki_flags"),
    ])?;
    let of_file = |file: &str| {
        format!(
            "dev=+{dev}(+{sb}(+{inode}({file}))):u32 ino=+{ino}(+{inode}({file})):u64 \
             mode=+{mode}(+{inode}({file})):u16"
        )
    };
    let known = fs::read_to_string("/proc/kallsyms").context("list the kernel's functions")?;
    let is_known = |function: &str| {
        known
            .lines()
            .any(|line| line.split_whitespace().nth(2) == Some(function))
    };
    let mut probes = Vec::new();
    for function in OF_FILES {
        probes.push((function, "file", of_file("$arg1")));
    }
    for function in OF_FILESYSTEMS {
        let what = format!("dev=+{dev}($arg1):u32 wait=$arg2:u32");
        probes.push((function, "fs", what));
    }
    let what = format!(
        "{} flags=+{flags}($arg1):u32",
        of_file(&format!("+{filp}($arg1)"))
    );
    probes.push((OF_WRITES, "write", what));
    let path = Path::new(TRACING).join("kprobe_events");
    let mut made = 0;
    for (function, kind, what) in probes {
        if is_known(function) {
            let line = format!("p:{GROUP}/{kind}_{function} {function} {what}\n");
            // Each write adds a probe; the file must not be emptied.
            let mut file = OpenOptions::new()
                .append(true)
                .open(&path)
                .with_context(|| format!("open {}", path.display()))?;
            file.write_all(line.as_bytes())
                .with_context(|| format!("add the probe {}", line.trim()))?;
            made += 1;
        }
    }
    ensure!(made > 0, "the kernel has none of the functions");
    Ok(())
}

fn set(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}

/// The number of the filesystem that is mounted there, as the kernel has it:
/// `major << 20 | minor`. The one that stat(2) gives is another on Btrfs.
fn device_of(at: &str) -> Result<u64> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("list the mounts")?;
    let found = mounts.lines().rev().find_map(|line| {
        // "36 35 98:0 / /mnt rw,noatime master:1 - fuse source options"
        let mut words = line.split(' ');
        let (device, point) = (words.nth(2)?, words.nth(1)?);
        (point == at).then_some(device)
    });
    let device = found.with_context(|| format!("nothing is mounted at {at}"))?;
    let (major, minor) = device.split_once(':').context("a device has two numbers")?;
    Ok(major.parse::<u64>()? << 20 | minor.parse::<u64>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_which_file_of_which_filesystem() {
        let syncs = Syncs {
            pipe: File::open("/dev/null").expect("it is there"),
            lower: 266_338_304,
            mount: 45,
            rest: Vec::new(),
        };
        let line = " python3-157   [001] .....    29.420628: file_ext4_sync_file: \
                    (ext4_sync_file+0x0/0x370 [ext4]) dev=266338304 ino=12 mode=33188";
        let seen = |level, inode, directory| {
            Some(Synced {
                level,
                inode,
                directory,
            })
        };
        assert_eq!(syncs.understood(line), seen(Level::Lower, 12, false));
        let line =
            " a dev=9 b-7 [000] ..... 1.0: fs_fuse_sync_fs: (fuse_sync_fs+0x4/0x9) dev=45 wait=1";
        assert_eq!(syncs.understood(line), seen(Level::Mount, 0, false));
        let line = " x-7 [000] ..... 1.0: file_fuse_dir_fsync: (f+0x4/0x9) dev=45 ino=1 mode=16877";
        assert_eq!(syncs.understood(line), seen(Level::Mount, 1, true));
        assert_eq!(
            syncs.understood(" x-7 [000] ..... 1.0: e: (f+0x4/0x9) dev=46 ino=1"),
            None
        );
        assert_eq!(syncs.understood("CPU:1 nothing"), None);
    }
}
