//! Operations on attributes, access rights and the filesystem as a whole.

use plugpull_fuse::SetTime;
use plugpull_fuse::abi::{Attr, Kstatfs, Statx};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, StatxFlags, Timestamps, Uid, accessat,
    chmodat, chownat, fstat, fstatvfs, ftruncate, statx, syncfs, utimensat,
};

use super::{Passthrough, clearing_set_id};
use crate::attr::{attr_of, statx_of, timespec};
use crate::mutant::{self, Mutant};
use crate::sys::truncate;
use crate::{Caller, Errno, HandleId, NodeId, Result};

/// `STATX__RESERVED` (include/uapi/linux/stat.h), which statx(2) refuses.
const RESERVED_MASK: u32 = 0x8000_0000;

/// What setattr changes; `None` keeps.
#[derive(Debug, Clone, Copy)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: SetTime,
    /// Time of last modification.
    pub mtime: SetTime,
    /// Whether set-id bits must not survive a change of size or owner.
    pub kill_suidgid: bool,
}

impl Default for SetAttr {
    fn default() -> Self {
        SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: SetTime::Keep,
            mtime: SetTime::Keep,
            kill_suidgid: false,
        }
    }
}

impl Passthrough {
    /// fstat(2).
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn getattr(&self, node: NodeId) -> Result<Attr> {
        let stat = match self.handles.file_of(node) {
            Some(file) => fstat(&*file),
            None => fstat(&*self.nodes.get(node)?),
        };
        Ok(attr_of(&stat?))
    }

    /// statx(2) for the fields of `mask`.
    ///
    /// # Errors
    /// Those of statx(2).
    pub fn statx(&self, node: NodeId, mask: u32) -> Result<Statx> {
        let node = self.nodes.get(node)?;
        let mask = StatxFlags::from_bits_retain(mask & !RESERVED_MASK);
        Ok(statx_of(&statx(&*node, "", AtFlags::EMPTY_PATH, mask)?))
    }

    /// Changes attributes and returns the new ones. The handle, where there is one,
    /// serves a change of size.
    ///
    /// Owner first, because a change of owner clears the set-id bits that a mode in
    /// the same request may set; times last, because a change of size sets them.
    ///
    /// # Errors
    /// Those of chown(2), chmod(2), truncate(2) and utimensat(2); what was done before
    /// the failing step stays done.
    pub fn setattr(
        &self,
        caller: Caller,
        node: NodeId,
        handle: Option<HandleId>,
        change: &SetAttr,
    ) -> Result<Attr> {
        let kind = self.nodes.kind(node)?;
        let node = self.nodes.get(node)?;
        if [change.uid, change.gid].contains(&Some(u32::MAX)) {
            // No id: to chown(2) it says "leave it", which is not what was asked for.
            return Err(Errno::INVAL);
        }
        if change.uid.is_some() || change.gid.is_some() {
            let uid = change.uid.map(Uid::from_raw);
            let gid = change.gid.map(Gid::from_raw);
            // The kernel asks for this with every change of owner; chown(2) does what
            // the caller's rights say, and the superuser keeps what it leaves.
            let by = caller.unless_root().filter(|_| change.kill_suidgid);
            clearing_set_id(by, &*node, || {
                chownat(&*node, "", uid, gid, AtFlags::EMPTY_PATH)
            })?;
        }
        if let Some(mode) = change.mode {
            // fchmodat2(2) with AT_EMPTY_PATH is as young as Linux 6.6.
            let mode = Mode::from_raw_mode(mode);
            chmodat(CWD, node.magic_link().as_c_str(), mode, AtFlags::empty())?;
        }
        if let Some(size) = change.size {
            let handle = if mutant::active(Mutant::SetattrTruncatesWrongHandle) {
                Some(self.handles.newest())
            } else {
                handle
            };
            clearing_set_id(
                change.kill_suidgid.then_some(caller),
                &*node,
                || match handle {
                    // ftruncate(2): this descriptor may write, whatever the mode says by now.
                    Some(handle) => ftruncate(&*self.handles.file(handle)?, size),
                    // As truncate(2); opened for it, a fifo would wait and a device act.
                    None if kind == FileType::Directory => Err(Errno::ISDIR),
                    None if kind != FileType::RegularFile => Err(Errno::INVAL),
                    None => truncate(node.magic_link().as_c_str(), size),
                },
            )?;
        }
        if (change.atime, change.mtime) != (SetTime::Keep, SetTime::Keep) {
            let times = Timestamps {
                last_access: timespec(change.atime),
                last_modification: timespec(change.mtime),
            };
            utimensat(&*node, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(attr_of(&fstat(&*node)?))
    }

    /// access(2) as the server itself. Only asked without `default_permissions`, that
    /// is by a server that is not root, whose one client is its own user.
    ///
    /// # Errors
    /// Those of access(2).
    pub fn access(&self, node: NodeId, mask: i32) -> Result<()> {
        let node = self.nodes.get(node)?;
        let access = Access::from_bits_retain(mask.cast_unsigned());
        accessat(CWD, node.magic_link().as_c_str(), access, AtFlags::EACCESS)
    }

    /// statvfs(3) of the filesystem below.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn statfs(&self, node: NodeId) -> Result<Kstatfs> {
        let stat = fstatvfs(&*self.nodes.get(node)?)?;
        Ok(Kstatfs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: u32::try_from(stat.f_bsize).unwrap_or(4096),
            namelen: u32::try_from(stat.f_namemax).unwrap_or(255),
            frsize: u32::try_from(stat.f_frsize).unwrap_or(4096),
            ..Kstatfs::default()
        })
    }

    /// syncfs(2) of the filesystem below, all of it.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn syncfs(&self) -> Result<()> {
        let root = self.nodes.get(NodeId::ROOT)?;
        syncfs(Self::reopen(&root, OFlags::RDONLY)?)
    }
}
