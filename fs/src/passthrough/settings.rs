//! What may be chosen about a mount.

use std::time::Duration;

use rustix::fd::AsFd;
use rustix::fs::fstatfs;

use crate::Result;

/// How reads and writes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoMode {
    /// The kernel does them itself where it can (`Passthrough`), else `Cached`.
    #[default]
    Auto,
    /// The kernel reads, writes and maps the lower file itself (Linux 6.9 and later, a
    /// server that is root). The server sees opens, fsync and the rest.
    Passthrough,
    /// Through the kernel's page cache, written through.
    Cached,
    /// Through the kernel's page cache, written back later, as a local filesystem does. The
    /// kernel trusts its own size and times of a file that it knows (`fuse_get_cache_mask`
    /// in fs/fuse/inode.c), so changes from elsewhere go unnoticed under every policy.
    Writeback,
    /// Each read and write is a request; nothing is cached above the server.
    Direct,
}

impl IoMode {
    /// Every mode, with its name and what it is, in the order of the help text.
    pub const ALL: [(IoMode, &'static str); 5] = [
        (IoMode::Auto, "auto"),
        (IoMode::Passthrough, "passthrough"),
        (IoMode::Cached, "cached"),
        (IoMode::Writeback, "writeback"),
        (IoMode::Direct, "direct"),
    ];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        IoMode::ALL
            .iter()
            .find_map(|(mode, name)| (*mode == self).then_some(*name))
            .unwrap_or("?")
    }
}

/// The way by which requests come from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// io_uring where the kernel offers it, else the device.
    #[default]
    Auto,
    /// io_uring, with threads on each processor (Linux 6.14 and later, switched on by the
    /// parameter `enable_uring` of the kernel module `fuse`).
    IoUring,
    /// `/dev/fuse`.
    Device,
}

impl Transport {
    /// Every way with its name.
    pub const ALL: [(Transport, &'static str); 3] = [
        (Transport::Auto, "auto"),
        (Transport::IoUring, "io-uring"),
        (Transport::Device, "device"),
    ];
}

/// What the kernel may believe without asking, when something else than this mount
/// changes the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CachePolicy {
    /// Nothing: each lookup and stat asks, each open reads anew. What is mapped or read
    /// between two opens of one file may still come from the page cache, unless the
    /// I/O mode is `direct` or `passthrough`.
    None,
    /// Names, attributes and data for up to a second: after that a changed size or time
    /// of modification is noticed and the data read anew.
    #[default]
    Auto,
    /// Everything, for a day. Changes from elsewhere may never be noticed.
    Always,
}

impl CachePolicy {
    /// Every policy with its name.
    pub const ALL: [(CachePolicy, &'static str); 3] = [
        (CachePolicy::None, "none"),
        (CachePolicy::Auto, "auto"),
        (CachePolicy::Always, "always"),
    ];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        CachePolicy::ALL
            .iter()
            .find_map(|(policy, name)| (*policy == self).then_some(*name))
            .unwrap_or("?")
    }

    /// How long names and attributes are believed.
    #[must_use]
    pub fn validity(self) -> Duration {
        match self {
            CachePolicy::None => Duration::ZERO,
            CachePolicy::Auto => Duration::from_secs(1),
            CachePolicy::Always => Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What may be chosen about a mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings {
    /// How reads and writes travel.
    pub io: IoMode,
    /// What the kernel may believe.
    pub cache: CachePolicy,
    /// How requests come.
    pub transport: Transport,
}

/// Filesystems whose close(2) has nothing to report: they have no `flush` among their
/// file operations (fs/ext4/file.c, fs/xfs/xfs_file.c, fs/btrfs/file.c, mm/shmem.c,
/// fs/f2fs/file.c). The others, network filesystems among them, may.
const WITHOUT_FLUSH: [u64; 5] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010];

/// Whether close(2) of a file below `root` may have something to report.
pub(super) fn flush_matters(root: impl AsFd) -> Result<bool> {
    let kind = fstatfs(root)?.f_type.cast_unsigned();
    Ok(!WITHOUT_FLUSH.contains(&kind))
}
