//! Attributes as the kernel's FUSE side wants them, from stat(2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use rustix::fs::{Stat, Timespec, UTIME_NOW, UTIME_OMIT, major, minor};

/// A time that setattr sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeChange {
    /// Leave it.
    Keep,
    /// The time of the call, in the lower filesystem's own clock and granularity.
    Now,
    /// This one; seconds may be negative, nanoseconds count forward from them.
    At {
        /// Seconds since 1970.
        seconds: i64,
        /// 0 to 999,999,999.
        nanoseconds: u32,
    },
}

impl TimeChange {
    /// From what fuser hands over, undoing its defect with times before 1970: for a
    /// distance `d` before the epoch it means −`d.as_secs()` seconds and
    /// `d.subsec_nanos()` nanoseconds *after* that second.
    #[must_use]
    pub fn from_fuser(time: Option<TimeOrNow>) -> Self {
        let time = match time {
            None => return TimeChange::Keep,
            Some(TimeOrNow::Now) => return TimeChange::Now,
            Some(TimeOrNow::SpecificTime(time)) => time,
        };
        let (seconds, distance) = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (0_i64.saturating_add_unsigned(after.as_secs()), after),
            Err(before) => {
                let before = before.duration();
                (0_i64.saturating_sub_unsigned(before.as_secs()), before)
            }
        };
        TimeChange::At {
            seconds,
            nanoseconds: distance.subsec_nanos(),
        }
    }

    pub(crate) fn to_timespec(self) -> Timespec {
        let (tv_sec, tv_nsec) = match self {
            TimeChange::Keep => (0, UTIME_OMIT),
            TimeChange::Now => (0, UTIME_NOW),
            TimeChange::At {
                seconds,
                nanoseconds,
            } => (seconds, nanoseconds.into()),
        };
        Timespec { tv_sec, tv_nsec }
    }
}

/// The attributes of `stat` under the inode number `ino`.
pub(crate) fn attr_of(stat: &Stat, ino: u64) -> FileAttr {
    let ctime = system_time(stat.st_ctime, stat.st_ctime_nsec);
    FileAttr {
        ino: INodeNo(ino),
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: system_time(stat.st_atime, stat.st_atime_nsec),
        mtime: system_time(stat.st_mtime, stat.st_mtime_nsec),
        ctime,
        crtime: ctime,
        kind: kind_of(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: (stat.st_mode & 0o7777) as u16,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: encode_device(stat.st_rdev),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}

/// The kind of a directory entry or of a mode. An unknown one (`DT_UNKNOWN`, from
/// lower filesystems that do not store kinds) is called a regular file: the kernel asks
/// again before it relies on the kind.
pub(crate) fn kind_of(kind: rustix::fs::FileType) -> FileType {
    use rustix::fs::FileType as Lower;
    match kind {
        Lower::Directory => FileType::Directory,
        Lower::Symlink => FileType::Symlink,
        Lower::Fifo => FileType::NamedPipe,
        Lower::Socket => FileType::Socket,
        Lower::CharacterDevice => FileType::CharDevice,
        Lower::BlockDevice => FileType::BlockDevice,
        Lower::RegularFile | Lower::Unknown => FileType::RegularFile,
    }
}

/// Device numbers travel in the kernel's 32-bit form (`new_encode_dev` in
/// include/linux/kdev_t.h), which is not the C library's.
fn encode_device(device: u64) -> u32 {
    let (major, minor) = (major(device), minor(device));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse of the encoding that the kernel uses in MKNOD.
pub(crate) fn decode_device(encoded: u32) -> u64 {
    let major = (encoded & 0x000f_ff00) >> 8;
    let minor = (encoded & 0xff) | ((encoded >> 12) & 0x000f_ff00);
    rustix::fs::makedev(major, minor)
}

fn system_time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let whole = if seconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    whole
        .and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds)))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_kernels_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (259, 7), (8, 0xfffff), (0xfff, 0x12345)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(device)), device);
        }
        // /dev/sdq1 as the kernel itself encodes it: major 65, minor 1.
        assert_eq!(encode_device(rustix::fs::makedev(65, 1)), 0x4101);
    }

    #[test]
    fn times_before_1970_are_what_the_kernel_sent() {
        // The kernel sends (-2, 800_000_000) for 1.2 s before the epoch; fuser makes
        // of it the epoch minus 2.8 s.
        let from_fuser = UNIX_EPOCH - Duration::new(2, 800_000_000);
        let change = TimeChange::from_fuser(Some(TimeOrNow::SpecificTime(from_fuser)));
        assert_eq!(
            change,
            TimeChange::At {
                seconds: -2,
                nanoseconds: 800_000_000
            }
        );
        // And on the way out the plain meaning is kept.
        let out = system_time(-2, 800_000_000);
        assert_eq!(out, UNIX_EPOCH - Duration::new(1, 200_000_000));
    }
}
