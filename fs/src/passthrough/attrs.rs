//! Operations on attributes, access rights and the filesystem as a whole.

use fuser::FileAttr;
use rustix::fs::{
    Access, AtFlags, CWD, Gid, Mode, OFlags, StatVfs, Timestamps, Uid, accessat, chmodat, chownat,
    fstat, fstatvfs, ftruncate, utimensat,
};

use super::Passthrough;
use crate::{HandleId, NodeId, Result, TimeChange};

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
    pub atime: TimeChange,
    /// Time of last modification.
    pub mtime: TimeChange,
}

impl Default for SetAttr {
    fn default() -> Self {
        SetAttr {
            mode: None,
            uid: None,
            gid: None,
            size: None,
            atime: TimeChange::Keep,
            mtime: TimeChange::Keep,
        }
    }
}

impl Passthrough {
    /// fstat(2).
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn getattr(&self, node: NodeId) -> Result<FileAttr> {
        Ok(Self::plain_attr(&fstat(&*self.nodes.get(node)?)?))
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
        node: NodeId,
        handle: Option<HandleId>,
        change: &SetAttr,
    ) -> Result<FileAttr> {
        let node = self.nodes.get(node)?;
        if change.uid.is_some() || change.gid.is_some() {
            let uid = change.uid.map(Uid::from_raw);
            let gid = change.gid.map(Gid::from_raw);
            chownat(&*node, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            // fchmodat2(2) with AT_EMPTY_PATH is as young as Linux 6.6.
            let mode = Mode::from_raw_mode(mode);
            chmodat(CWD, node.magic_link(), mode, AtFlags::empty())?;
        }
        if let Some(size) = change.size {
            match handle {
                // ftruncate(2): this descriptor may write, whatever the mode says by now.
                Some(handle) => ftruncate(&*self.handles.file(handle)?, size)?,
                None => ftruncate(Self::reopen(&node, OFlags::WRONLY)?, size)?,
            }
        }
        if (change.atime, change.mtime) != (TimeChange::Keep, TimeChange::Keep) {
            let times = Timestamps {
                last_access: change.atime.to_timespec(),
                last_modification: change.mtime.to_timespec(),
            };
            utimensat(&*node, "", &times, AtFlags::EMPTY_PATH)?;
        }
        Ok(Self::plain_attr(&fstat(&*node)?))
    }

    /// access(2) as the server itself. Only asked without `default_permissions`, that
    /// is by a server that is not root, whose one client is its own user.
    ///
    /// # Errors
    /// Those of access(2).
    pub fn access(&self, node: NodeId, mask: i32) -> Result<()> {
        let node = self.nodes.get(node)?;
        let access = Access::from_bits_retain(mask.cast_unsigned());
        accessat(CWD, node.magic_link(), access, AtFlags::EACCESS)
    }

    /// statvfs(3) of the filesystem below.
    ///
    /// # Errors
    /// Those of fstatfs(2).
    pub fn statfs(&self, node: NodeId) -> Result<StatVfs> {
        fstatvfs(&*self.nodes.get(node)?)
    }
}
