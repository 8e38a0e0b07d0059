//! Operations on names: making, removing, renaming and linking.

use std::ffi::OsStr;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, RenameFlags, linkat, mkdirat, mknodat, readlinkat, renameat_with,
    symlinkat, unlinkat,
};

use super::{Entry, Passthrough, check_name};
use crate::attr::decode_device;
use crate::mutant::{self, Mutant};
use crate::{Caller, NodeId, Result};

impl Passthrough {
    /// mkdir(2).
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn mkdir(&self, caller: Caller, parent: NodeId, name: &OsStr, mode: u32) -> Result<Entry> {
        check_name(name)?;
        let parent = self.nodes.get(parent)?;
        caller.creating(|| mkdirat(&*parent, name, Mode::from_raw_mode(mode)))?;
        self.lookup_in(&parent, name)
    }

    /// mknod(2): files, fifos, sockets and devices. `device` is in the kernel's
    /// 32-bit encoding.
    ///
    /// # Errors
    /// Those of mknod(2).
    pub fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        device: u32,
    ) -> Result<Entry> {
        check_name(name)?;
        let parent = self.nodes.get(parent)?;
        let kind = FileType::from_raw_mode(mode);
        let device = decode_device(device);
        caller.creating(|| mknodat(&*parent, name, kind, Mode::from_raw_mode(mode), device))?;
        self.lookup_in(&parent, name)
    }

    /// symlink(2). The target is stored as it is and never looked at.
    ///
    /// # Errors
    /// Those of symlink(2).
    pub fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &Path,
    ) -> Result<Entry> {
        check_name(name)?;
        let parent = self.nodes.get(parent)?;
        caller.creating(|| symlinkat(target, &*parent, name))?;
        self.lookup_in(&parent, name)
    }

    /// readlink(2) of the inode itself.
    ///
    /// # Errors
    /// Those of readlink(2).
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let node = self.nodes.get(node)?;
        Ok(readlinkat(&*node, "", Vec::new())?.into_bytes())
    }

    /// link(2): another name for an inode, also for a symbolic link itself.
    ///
    /// # Errors
    /// Those of link(2).
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        check_name(name)?;
        let id = node;
        let node = self.nodes.get(id)?;
        let parent = self.nodes.get(parent)?;
        // The only link that is followed is the magic one, which leads to the inode.
        let flags = AtFlags::SYMLINK_FOLLOW;
        linkat(CWD, node.magic_link().as_c_str(), &*parent, name, flags)?;
        let entry = self.lookup_in(&parent, name)?;
        if entry.attr.nlink > 0 {
            // It may have had no name before (O_TMPFILE), and was pinned therefore.
            self.nodes.name_given(id, &node);
        }
        Ok(entry)
    }

    /// unlink(2). Open files and working directories keep the inode.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn unlink(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        check_name(name)?;
        let parent = self.nodes.get(parent)?;
        self.removing(&parent, name, || unlinkat(&*parent, name, AtFlags::empty()))
    }

    /// rmdir(2).
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn rmdir(&self, parent: NodeId, name: &OsStr) -> Result<()> {
        check_name(name)?;
        let parent = self.nodes.get(parent)?;
        self.removing(&parent, name, || {
            unlinkat(&*parent, name, AtFlags::REMOVEDIR)
        })
    }

    /// renameat2(2) with its flags as they are; the lower filesystem judges them.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn rename(
        &self,
        caller: Caller,
        from: (NodeId, &OsStr),
        to: (NodeId, &OsStr),
        flags: u32,
    ) -> Result<()> {
        check_name(from.1)?;
        check_name(to.1)?;
        let old = self.nodes.get(from.0)?;
        let new = self.nodes.get(to.0)?;
        let flags = if mutant::active(Mutant::RenameFlagsIgnored) {
            RenameFlags::empty()
        } else {
            RenameFlags::from_bits_retain(flags)
        };
        let rename = || {
            let rename = || renameat_with(&*old, from.1, &*new, to.1, flags);
            // RENAME_WHITEOUT creates a device node, which must have an owner.
            if flags.contains(RenameFlags::WHITEOUT) {
                caller.creating(rename)
            } else {
                rename()
            }
        };
        if flags.intersects(RenameFlags::EXCHANGE | RenameFlags::NOREPLACE) {
            // No name goes.
            rename()
        } else {
            self.removing(&new, to.1, rename)
        }
    }
}
