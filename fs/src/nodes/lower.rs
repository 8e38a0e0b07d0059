//! The system calls on the source that the node table needs.
//!
//! A trait, because the models of the table run them on inodes of their own.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, fstatfs, openat, statat};

use super::handle::FileHandle;
use crate::sys::{self, MountId};
use crate::{Errno, Result};

/// A filesystem below, and its descriptors, which close when dropped.
pub(crate) trait Lower {
    /// An `O_PATH` descriptor.
    type Fd;

    /// fstat(2).
    fn stat(&self, fd: &Self::Fd) -> Result<Stat>;

    /// name_to_handle_at(2) of the descriptor's own inode.
    fn name_to_handle(&self, fd: &Self::Fd) -> Result<FileHandle>;

    /// name_to_handle_at(2) of what a name stands for, itself if it is a symbolic link.
    /// None when that is on another mount.
    fn handle_at(&self, dir: &Self::Fd, name: &OsStr) -> Result<Option<FileHandle>>;

    /// fstatat(2) of the same.
    fn stat_at(&self, dir: &Self::Fd, name: &OsStr) -> Result<Stat>;

    /// open_by_handle_at(2) with `O_PATH`; ESTALE when the inode is no more.
    fn open_by_handle(&self, handle: &FileHandle) -> Result<Self::Fd>;
}

/// The real one.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The root, opened in earnest: open_by_handle_at(2) refuses an `O_PATH`
    /// descriptor as the name of the filesystem. None where this server may not read
    /// the root.
    mount: Option<OwnedFd>,
    /// The mount of the root.
    mount_id: Option<MountId>,
}

/// Filesystems that find every inode by its handle, however long it has been out of
/// memory: `f_type` as in statfs(2). Others only look among the inodes in memory (FUSE
/// without `FUSE_EXPORT_SUPPORT`, FAT), and that cannot be asked of the root, which is
/// always there.
const PERSISTENT: [(&str, i64); 6] = [
    ("ext4", 0xef53),
    ("xfs", 0x5846_5342),
    ("btrfs", 0x9123_683e),
    ("tmpfs", 0x0102_1994),
    ("f2fs", 0xf2f5_2010),
    ("bcachefs", 0xca45_1a4e),
];

/// The root's handle, or why handles do not work.
type Probed = std::result::Result<FileHandle, &'static str>;

impl Kernel {
    /// The filesystem of `root`, and whether inodes can be resolved by handle there.
    pub(crate) fn probe(root: &OwnedFd) -> (Self, Probed) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let kernel = Kernel {
            mount: openat(root, ".", flags, Mode::empty()).ok(),
            mount_id: sys::name_to_handle(root, c"").ok().map(|(_, mount)| mount),
        };
        let found = kernel.try_handles(root);
        (kernel, found)
    }

    /// open_by_handle_at(2) with flags of open(2).
    pub(super) fn open_file(&self, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd> {
        let mount = self.mount.as_ref().ok_or(Errno::PERM)?;
        sys::open_by_handle(mount, handle, flags)
    }

    fn try_handles(&self, root: &OwnedFd) -> Probed {
        let kind = fstatfs(root).map_err(|_| "the filesystem below does not say what it is")?;
        if !PERSISTENT.iter().any(|(_, number)| *number == kind.f_type) {
            return Err("this kind of filesystem may not find an inode by its handle again");
        }
        let handle = self
            .name_to_handle(root)
            .map_err(|_| "the filesystem below gives no file handles")?;
        match self.open_by_handle(&handle) {
            Ok(again) => {
                let number = |fd: &OwnedFd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
                if number(&again) == number(root) {
                    Ok(handle)
                } else {
                    Err("the root's file handle leads to something else")
                }
            }
            Err(Errno::PERM) => Err("file handles need CAP_DAC_READ_SEARCH"),
            Err(_) => Err("the root's file handle does not lead to the root"),
        }
    }
}

impl Lower for Kernel {
    type Fd = OwnedFd;

    fn stat(&self, fd: &OwnedFd) -> Result<Stat> {
        fstat(fd)
    }

    fn name_to_handle(&self, fd: &OwnedFd) -> Result<FileHandle> {
        Ok(sys::name_to_handle(fd, c"")?.0)
    }

    fn handle_at(&self, dir: &OwnedFd, name: &OsStr) -> Result<Option<FileHandle>> {
        let (handle, mount) = sys::name_to_handle(dir, name)?;
        Ok((Some(mount) == self.mount_id).then_some(handle))
    }

    fn stat_at(&self, dir: &OwnedFd, name: &OsStr) -> Result<Stat> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        statat(dir, name, flags)
    }

    fn open_by_handle(&self, handle: &FileHandle) -> Result<OwnedFd> {
        self.open_file(handle, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)
    }
}
