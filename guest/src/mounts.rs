//! Filesystems: making, mounting, serving and unmounting them.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use plugpull_protocol::Exited;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use crate::process::{Process, Spec};

/// How long mkfs may take.
const MKFS_DEADLINE: Duration = Duration::from_secs(120);

/// Options that mount(8) turns into flags; the kernel refuses them as data.
const FLAG_OPTIONS: &[(&str, MountFlags)] = &[
    ("ro", MountFlags::RDONLY),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("nodev", MountFlags::NODEV),
    ("nosuid", MountFlags::NOSUID),
    ("noexec", MountFlags::NOEXEC),
];

/// Make a filesystem.
///
/// Without lazy initialisation: background zeroing would pollute the writes
/// that are pending at a power cut.
pub(crate) fn mkfs(device: &Path, fs: &str, args: &[String]) -> Result<()> {
    let node = device.to_str().context("a device's name is ASCII")?;
    let fixed: &[&str] = match fs {
        "ext4" => &[
            "/sbin/mkfs.ext4",
            "-q",
            "-F",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        ],
        "xfs" => &["/sbin/mkfs.xfs", "-q", "-f", "-K"],
        "btrfs" => &["/sbin/mkfs.btrfs", "-q", "-f", "-K"],
        other => bail!("no mkfs is known for {other:?}"),
    };
    let exited = Spec::new(fixed)
        .args(args)
        .args([node])
        .run(MKFS_DEADLINE)?;
    ensure!(
        exited.success(),
        "mkfs.{fs} {node} ended with {}: {}",
        exited.code,
        exited.stderr.trim()
    );
    Ok(())
}

/// Check a filesystem, read-only.
pub(crate) fn fsck(device: &Path, fs: &str, timeout: Duration) -> Result<Exited> {
    let fixed: &[&str] = match fs {
        "ext4" => &["/sbin/e2fsck", "-f", "-n"],
        "xfs" => &["/sbin/xfs_repair", "-n"],
        "btrfs" => &["/bin/btrfs", "check", "--readonly"],
        other => bail!("no fsck is known for {other:?}"),
    };
    Spec::new(fixed).args([device]).run(timeout)
}

/// Mount a block device; the mount point is made if missing.
pub(crate) fn mount_device(device: &Path, fs: &str, options: &str, at: &str) -> Result<()> {
    fs::create_dir_all(at).with_context(|| format!("make the mount point {at}"))?;
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match FLAG_OPTIONS.iter().find(|(name, _)| *name == option) {
            Some((_, flag)) => flags |= *flag,
            None => data.push(option),
        }
    }
    let data = CString::new(data.join(","))?;
    mount(device, at, fs, flags, data.as_c_str()).with_context(|| {
        format!(
            "mount {fs} {} on {at} with options {options:?}",
            device.display()
        )
    })
}

/// Mount a block device read-only, without replaying anything.
pub(crate) fn mount_read_only(device: &Path, fs: &str, at: &str) -> Result<()> {
    mount_device(device, fs, "ro", at)
}

/// The filesystem servers that run, by mount point.
#[derive(Default)]
pub(crate) struct Servers {
    running: Mutex<HashMap<PathBuf, Process>>,
}

impl Servers {
    /// Start a server in the foreground and wait until it has mounted.
    pub(crate) fn start(&self, argv: &[String], at: &str, timeout: Duration) -> Result<()> {
        fs::create_dir_all(at).with_context(|| format!("make the mount point {at}"))?;
        let mut server = Spec::new(argv).spawn()?;
        wait_for_mount(at, timeout, &mut server)
            .with_context(|| format!("wait for {argv:?} to mount {at}"))?;
        self.running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(PathBuf::from(at), server);
        Ok(())
    }

    /// Unmount, and wait for the server that mounted it to end well.
    pub(crate) fn unmount(&self, at: &str, timeout: Duration) -> Result<()> {
        unmount(at, UnmountFlags::empty()).with_context(|| format!("unmount {at}"))?;
        let server = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(Path::new(at));
        let Some(mut server) = server else {
            return Ok(());
        };
        let exited = server
            .wait(timeout)
            .with_context(|| format!("wait for the server of {at} to end after its unmount"))?;
        ensure!(
            exited.success(),
            "the server of {at} ended with {} after its unmount: {}",
            exited.code,
            exited.stderr.trim()
        );
        Ok(())
    }
}

/// Wait for a FUSE mount to appear at a path.
///
/// /proc/self/mountinfo polls with an error condition when it changes
/// (fs/proc_namespace.c), so nothing is polled in a loop. The deadline is cut
/// into slices only to notice a server that died before it mounted.
fn wait_for_mount(at: &str, timeout: Duration, server: &mut Process) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let mountinfo = File::open("/proc/self/mountinfo")?;
    loop {
        if is_fuse_mount(at)? {
            return Ok(());
        }
        if server.exits_within(Duration::ZERO)? {
            let exited = server.wait(Duration::ZERO)?;
            bail!(
                "it ended with {} instead: {}",
                exited.code,
                exited.stderr.trim()
            );
        }
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "nothing was mounted within {timeout:?}");
        let slice = left.min(Duration::from_millis(200));
        let slice = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(slice.subsec_nanos()),
        };
        match poll(
            &mut [PollFd::new(&mountinfo.as_fd(), PollFlags::PRI)],
            Some(&slice),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll /proc/self/mountinfo"),
        }
    }
}

fn is_fuse_mount(at: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| {
        // "36 35 98:0 / /mnt rw,noatime master:1 - fuse source options"
        let point = line.split(' ').nth(4);
        let kind = line
            .split_once(" - ")
            .and_then(|(_, rest)| rest.split(' ').next());
        point == Some(at) && kind.is_some_and(|kind| kind == "fuse" || kind.starts_with("fuse"))
    }))
}
