//! The filesystem itself: every operation as a function from values to values.
//!
//! Names are resolved one component at a time against the `O_PATH` descriptor of the
//! parent inode, with `O_NOFOLLOW` and without crossing a mount (`RESOLVE_NO_XDEV`), so
//! a directory that somebody swaps for a symbolic link leads nowhere. Permissions are
//! the kernel's business (`default_permissions`); what is done here is done with the
//! server's rights, and created in the caller's name.

mod attrs;
mod dirs;
mod files;
mod ioctls;
mod names;
mod open;
mod settings;
mod xattrs;

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use plugpull_fuse::abi::Attr;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};

pub use attrs::SetAttr;
pub(crate) use dirs::DirStream;
pub use dirs::Listed;
pub use files::{WriteHow, WriteSync, Written};
pub use ioctls::IoctlAnswer;
pub use open::{Backing, NoBacking, Opened};
pub use settings::{CachePolicy, IoMode, Settings, Transport};
pub use xattrs::XattrAnswer;

use crate::attr::attr_of;
use crate::handles::HandleTable;
use crate::io_modes::IoModes;
use crate::nodes::{Node, NodeId, NodeTable};
use crate::{Caller, Errno, Result};

/// A name that was found or made.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The node; its lookup count was raised by one.
    pub node: NodeId,
    /// Distinguishes files that had the same node id one after the other.
    pub generation: u64,
    /// Attributes.
    pub attr: Attr,
}

/// A mounted source directory.
#[derive(Debug)]
pub struct Passthrough {
    nodes: NodeTable,
    handles: HandleTable,
    io_modes: IoModes,
    settings: Settings,
    /// Whether close(2) on the lower filesystem may have something to report.
    flush_matters: bool,
}

impl Passthrough {
    /// Opens `source` as the root of a mount.
    ///
    /// # Errors
    /// Any error of open(2); ENOTDIR when it is no directory.
    pub fn new(source: &Path, settings: Settings) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, source, flags, Mode::empty())?;
        let flush_matters = settings::flush_matters(&root)?;
        Ok(Passthrough {
            nodes: NodeTable::new(root)?,
            handles: HandleTable::new(),
            io_modes: IoModes::new(),
            settings,
            flush_matters,
        })
    }

    /// What was chosen about this mount.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Settles how reads and writes travel, when the kernel has said what it can.
    pub fn settle_io(&mut self, io: IoMode) {
        self.settings.io = io;
    }

    /// Whether inodes are found again by file handle. If not, each inode that the kernel
    /// knows keeps a descriptor open, as many as the limit of open files permits.
    #[must_use]
    pub fn resolves_by_handle(&self) -> bool {
        self.nodes.resolves_by_handle()
    }

    /// Finds `name` in `parent` and raises its lookup count by one.
    ///
    /// # Errors
    /// ENOENT; EXDEV for a name that leads to another device or is a mount point.
    pub fn lookup(&self, parent: NodeId, name: &OsStr) -> Result<Entry> {
        let parent = self.nodes.get(parent)?;
        self.lookup_in(&parent, name)
    }

    /// Takes back lookups that the kernel no longer needs.
    pub fn forget(&self, node: NodeId, lookups: u64) {
        self.nodes.forget(node, lookups);
    }

    fn lookup_in(&self, parent: &Node, name: &OsStr) -> Result<Entry> {
        check_name(name)?;
        if let Some((generation, stat)) = self.nodes.look_up(parent, name)? {
            return Ok(self.entry(generation, &stat));
        }
        let (entry, _) = self.enter(Self::hold(parent, name)?)?;
        Ok(entry)
    }

    /// An `O_PATH` descriptor of what a name stands for, within the source.
    fn hold(parent: &Node, name: &OsStr) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(parent, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)
    }

    /// Runs `remove`, which takes the name of an inode away, so that the inode stays
    /// within reach of those who still use it.
    fn removing(
        &self,
        parent: &Node,
        name: &OsStr,
        remove: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if !self.nodes.resolves_by_handle() {
            return remove();
        }
        // What cannot be held, because there is no such name or for want of
        // descriptors, is removed all the same if the kernel can.
        let victim = Self::hold(parent, name);
        remove()?;
        match victim {
            Ok(fd) => self.nodes.name_removed(fd),
            Err(Errno::NOENT) => {}
            Err(error) => tracing::error!(
                ?name,
                %error,
                "a removed inode may be lost to those who still hold it"
            ),
        }
        Ok(())
    }

    /// Enters an `O_PATH` descriptor into the node table.
    fn enter(&self, fd: OwnedFd) -> Result<(Entry, Arc<Node>)> {
        let (node, stat) = self.nodes.enter(fd)?;
        Ok((self.entry(node.generation(), &stat), node))
    }

    fn entry(&self, generation: u64, stat: &Stat) -> Entry {
        Entry {
            node: self.nodes.id_of(stat.st_ino),
            generation,
            attr: attr_of(stat),
        }
    }

    /// Opens the inode of a node itself, whatever its name is by now.
    fn reopen(node: &Node, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(CWD, node.magic_link().as_c_str(), flags, Mode::empty())
    }
}

/// Runs `change` on a file; if somebody is named who may not keep its set-id bits, and it
/// has any, with that caller's rights over them. Returns also whether that was so.
fn clearing_set_id<T>(
    by: Option<Caller>,
    file: impl AsFd,
    change: impl FnOnce() -> Result<T>,
) -> Result<(T, bool)> {
    let Some(caller) = by else {
        return Ok((change()?, false));
    };
    let stat = fstat(file)?;
    if stat.st_mode & (libc::S_ISUID | libc::S_ISGID) == 0 {
        return Ok((change()?, false));
    }
    Ok((caller.clearing_set_id(stat.st_gid, change)?, true))
}

/// A name must be one component. The kernel sends nothing else; a name that walks
/// would leave the source, so this does not rely on it.
fn check_name(name: &OsStr) -> Result<()> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

// Not with shuttle's locks, which work in models alone.
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
