//! Attributes as the kernel's FUSE side wants them, from stat(2) and statx(2).

use plugpull_fuse::SetTime;
use plugpull_fuse::abi::{Attr, Statx, SxTime};
use rustix::fs::{FileType, Stat, Timespec, UTIME_NOW, UTIME_OMIT, major, minor};

/// The time as utimensat(2) takes it.
pub(crate) fn timespec(time: SetTime) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        SetTime::Keep => (0, UTIME_OMIT),
        SetTime::Now => (0, UTIME_NOW),
        SetTime::At {
            seconds,
            nanoseconds,
        } => (seconds, nanoseconds.into()),
    };
    Timespec { tv_sec, tv_nsec }
}

/// The attributes of `stat`.
pub(crate) fn attr_of(stat: &Stat) -> Attr {
    Attr {
        ino: stat.st_ino,
        size: stat.st_size.cast_unsigned(),
        blocks: stat.st_blocks.cast_unsigned(),
        atime: stat.st_atime.cast_unsigned(),
        mtime: stat.st_mtime.cast_unsigned(),
        ctime: stat.st_ctime.cast_unsigned(),
        atimensec: nanoseconds(stat.st_atime_nsec),
        mtimensec: nanoseconds(stat.st_mtime_nsec),
        ctimensec: nanoseconds(stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: encode_device(major(stat.st_rdev), minor(stat.st_rdev)),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}

/// The attributes of `stat`, with the time of birth.
pub(crate) fn statx_of(stat: &rustix::fs::Statx) -> Statx {
    let time = |time: rustix::fs::StatxTimestamp| SxTime {
        tv_sec: time.tv_sec,
        tv_nsec: time.tv_nsec,
        reserved: 0,
    };
    Statx {
        mask: stat.stx_mask,
        blksize: stat.stx_blksize,
        attributes: stat.stx_attributes.bits(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mode: stat.stx_mode,
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        attributes_mask: stat.stx_attributes_mask.bits(),
        atime: time(stat.stx_atime),
        btime: time(stat.stx_btime),
        ctime: time(stat.stx_ctime),
        mtime: time(stat.stx_mtime),
        rdev_major: stat.stx_rdev_major,
        rdev_minor: stat.stx_rdev_minor,
        dev_major: stat.stx_dev_major,
        dev_minor: stat.stx_dev_minor,
        ..Statx::default()
    }
}

/// The kind of a directory entry: `DT_REG` and so on are the type bits of a mode, and 0
/// is `DT_UNKNOWN`, from lower filesystems that do not store kinds.
pub(crate) fn dirent_kind(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        kind => kind.as_raw_mode() >> 12,
    }
}

/// Device numbers travel in the kernel's 32-bit form (`new_encode_dev` in
/// include/linux/kdev_t.h), which is not the C library's.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The inverse of the encoding that the kernel uses in MKNOD.
pub(crate) fn decode_device(encoded: u32) -> u64 {
    let major = (encoded & 0x000f_ff00) >> 8;
    let minor = (encoded & 0xff) | ((encoded >> 12) & 0x000f_ff00);
    rustix::fs::makedev(major, minor)
}

fn nanoseconds(count: u64) -> u32 {
    // Below a thousand million by definition.
    u32::try_from(count).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_kernels_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (259, 7), (8, 0xfffff), (0xfff, 0x12345)] {
            let device = rustix::fs::makedev(major, minor);
            assert_eq!(decode_device(encode_device(major, minor)), device);
        }
        // /dev/sdq1 as the kernel itself encodes it: major 65, minor 1.
        assert_eq!(encode_device(65, 1), 0x4101);
    }

    #[test]
    fn kinds_are_the_type_bits_of_modes() {
        assert_eq!(dirent_kind(FileType::Directory), u32::from(libc::DT_DIR));
        assert_eq!(dirent_kind(FileType::Symlink), u32::from(libc::DT_LNK));
        assert_eq!(dirent_kind(FileType::Unknown), u32::from(libc::DT_UNKNOWN));
    }
}
