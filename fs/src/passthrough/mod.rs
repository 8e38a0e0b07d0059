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
mod names;
mod xattrs;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{FileAttr, INodeNo};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};

pub use attrs::SetAttr;
pub(crate) use dirs::DirStream;
pub use dirs::Listed;
pub use files::WriteSync;
pub use xattrs::XattrAnswer;

use crate::attr::attr_of;
use crate::handles::HandleTable;
use crate::nodes::{Node, NodeId, NodeTable};
use crate::{Errno, Result};

/// How reads and writes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoMode {
    /// Through the kernel's page cache, written through.
    #[default]
    Cached,
    /// Each read and write is a request; nothing is cached above the server.
    Direct,
}

/// What may be chosen about a mount.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How reads and writes travel.
    pub io: IoMode,
    /// How long the kernel may believe names and attributes without asking. The source
    /// belongs to the mount alone; changes made behind its back are seen after this.
    pub validity: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            io: IoMode::default(),
            validity: Duration::from_secs(1),
        }
    }
}

/// A name that was found or made.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Attributes; the inode number in them is the node id.
    pub attr: FileAttr,
    /// Distinguishes files that had the same node id one after the other.
    pub generation: u64,
}

impl Entry {
    /// A listed name that was not looked up: only its number and kind mean anything.
    #[must_use]
    pub fn unlooked(listed: &Listed) -> Self {
        Entry {
            attr: FileAttr {
                ino: INodeNo(listed.ino),
                size: 0,
                blocks: 0,
                atime: UNIX_EPOCH,
                mtime: UNIX_EPOCH,
                ctime: UNIX_EPOCH,
                crtime: UNIX_EPOCH,
                kind: listed.kind,
                perm: 0,
                nlink: 1,
                uid: 0,
                gid: 0,
                rdev: 0,
                blksize: 0,
                flags: 0,
            },
            generation: 0,
        }
    }
}

/// A mounted source directory.
#[derive(Debug)]
pub struct Passthrough {
    nodes: NodeTable,
    handles: HandleTable,
    settings: Settings,
}

impl Passthrough {
    /// Opens `source` as the root of a mount.
    ///
    /// # Errors
    /// Any error of open(2); ENOTDIR when it is no directory.
    pub fn new(source: &Path, settings: Settings) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, source, flags, Mode::empty())?;
        Ok(Passthrough {
            nodes: NodeTable::new(root)?,
            handles: HandleTable::new(),
            settings,
        })
    }

    /// What was chosen about this mount.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
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
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_XDEV;
        let fd = openat2(parent, name, flags, Mode::empty(), resolve)?;
        let (entry, _) = self.enter(fd)?;
        Ok(entry)
    }

    /// Enters an `O_PATH` descriptor into the node table.
    fn enter(&self, fd: OwnedFd) -> Result<(Entry, Arc<Node>)> {
        let stat = fstat(&fd)?;
        let node = self.nodes.enter(fd, &stat)?;
        let entry = Entry {
            attr: attr_of(&stat, self.nodes.id_of(stat.st_ino).number()),
            generation: node.generation(),
        };
        Ok((entry, node))
    }

    /// Attributes as getattr answers them: with the number that the lower filesystem
    /// shows, which for the root is not its node id.
    fn plain_attr(stat: &Stat) -> FileAttr {
        attr_of(stat, stat.st_ino)
    }

    /// Opens the inode of a node itself, whatever its name is by now.
    fn reopen(node: &Node, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        openat(CWD, node.magic_link(), flags, Mode::empty())
    }
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

#[cfg(test)]
mod tests;
