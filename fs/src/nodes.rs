//! The node table: which inode of the source the kernel means by a node id.
//!
//! A node id is the backing inode number, so that it is the same after a restart and
//! the same in every listing. The kernel calls the root 1; the root's own number and 1
//! change places, which keeps the mapping one to one.
//!
//! The kernel holds a lookup count per node. It is raised here, under the lock, before
//! the reply is sent, and lowered by FORGET; at zero the node goes. While a node is
//! known its inode is held by an `O_PATH` descriptor, so its number cannot be given to
//! another file, and a file whose last name is gone stays reachable for a working
//! directory or an `O_PATH` descriptor of a client. That the table holds descriptors
//! is known to this file alone: everybody else gets a [`Node`] for one request.
//!
//! The locks never leave this file.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, Stat};

use crate::{Errno, Result};

const SHARDS: u64 = 64;

/// The number by which the kernel names an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: NodeId = NodeId(1);

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        NodeId(number)
    }
}

/// An inode of the source, for as long as the holder needs it.
#[derive(Debug)]
pub(crate) struct Node {
    fd: OwnedFd,
    kind: FileType,
    generation: u64,
}

impl Node {
    /// Distinguishes two files that had the same number one after the other.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// What it is; an inode does not change its kind.
    pub(crate) fn kind(&self) -> FileType {
        self.kind
    }

    /// A path that leads to exactly this inode, for the system calls that refuse an
    /// `O_PATH` descriptor. It is a magic link: nothing is resolved, not even when
    /// the inode is a symbolic link.
    pub(crate) fn magic_link(&self) -> String {
        magic_link(&self.fd)
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The magic link of a descriptor of this process.
pub(crate) fn magic_link(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    lookups: u64,
}

type Map = HashMap<NodeId, Entry>;

/// All inodes that the kernel knows, with its lookup counts.
#[derive(Debug)]
pub(crate) struct NodeTable {
    root: Arc<Node>,
    root_ino: u64,
    device: u64,
    generations: AtomicU64,
    shards: Vec<Mutex<Map>>,
}

impl NodeTable {
    /// A table whose root is the directory `root`, an `O_PATH` descriptor.
    pub(crate) fn new(root: OwnedFd) -> Result<Self> {
        let stat = rustix::fs::fstat(&root)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok(NodeTable {
            root: Arc::new(Node {
                fd: root,
                kind,
                generation: 0,
            }),
            root_ino: stat.st_ino,
            device: stat.st_dev,
            generations: AtomicU64::new(1),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        })
    }

    /// The node id of a backing inode number; the mapping is its own inverse.
    pub(crate) fn id_of(&self, ino: u64) -> NodeId {
        match ino {
            ino if ino == self.root_ino => NodeId::ROOT,
            1 => NodeId(self.root_ino),
            ino => NodeId(ino),
        }
    }

    /// The inode behind a node id, or ESTALE.
    pub(crate) fn get(&self, id: NodeId) -> Result<Arc<Node>> {
        if id == NodeId::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let map = self
            .shard(id)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        map.get(&id)
            .map(|entry| Arc::clone(&entry.node))
            .ok_or(Errno::STALE)
    }

    /// Notes one lookup of the inode that `fd`, an `O_PATH` descriptor, holds and
    /// `stat` describes. The descriptor is kept when the inode was not known.
    ///
    /// # Errors
    /// EXDEV when the inode is not on the root's device: two files with one number must
    /// never share a node id.
    pub(crate) fn enter(&self, fd: OwnedFd, stat: &Stat) -> Result<Arc<Node>> {
        if stat.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        let id = self.id_of(stat.st_ino);
        if id == NodeId::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let mut map = self
            .shard(id)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Both descriptors hold their inodes, so one number on one device is one inode.
        let entry = map.entry(id).or_insert_with(|| Entry {
            node: Arc::new(Node {
                fd,
                kind: FileType::from_raw_mode(stat.st_mode),
                generation: self.generations.fetch_add(1, Ordering::Relaxed),
            }),
            lookups: 0,
        });
        entry.lookups += 1;
        Ok(Arc::clone(&entry.node))
    }

    /// Takes back `lookups` lookups of a node; at zero it is forgotten.
    pub(crate) fn forget(&self, id: NodeId, lookups: u64) {
        if id == NodeId::ROOT {
            return;
        }
        // Dropped after the lock: closing the descriptor of a deleted file frees its
        // blocks, which can take long.
        let _forgotten = {
            let mut map = self
                .shard(id)
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let Some(entry) = map.get_mut(&id) else {
                tracing::error!(?id, lookups, "FORGET of an unknown node");
                return;
            };
            match entry.lookups.checked_sub(lookups) {
                Some(0) => map.remove(&id),
                Some(left) => {
                    entry.lookups = left;
                    None
                }
                None => {
                    tracing::error!(?id, lookups, known = entry.lookups, "FORGET of too many");
                    map.remove(&id)
                }
            }
        };
    }

    fn shard(&self, id: NodeId) -> &Mutex<Map> {
        &self.shards[(id.0 % SHARDS) as usize]
    }

    /// How many nodes besides the root are known, and the sum of their counts.
    #[cfg(test)]
    pub(crate) fn known(&self) -> (usize, u64) {
        self.shards.iter().fold((0, 0), |(nodes, lookups), shard| {
            let map = shard.lock().unwrap_or_else(PoisonError::into_inner);
            (
                nodes + map.len(),
                lookups + map.values().map(|entry| entry.lookups).sum::<u64>(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

    use super::*;

    fn path_fd(path: &Path) -> OwnedFd {
        openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap()
    }

    fn table(dir: &Path) -> NodeTable {
        NodeTable::new(path_fd(dir)).unwrap()
    }

    #[test]
    fn counts_are_exact_under_concurrent_lookup_and_forget() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "").unwrap();
        let table = table(dir.path());
        let stat = fstat(path_fd(&file)).unwrap();
        let id = table.id_of(stat.st_ino);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        table.enter(path_fd(&file), &stat).unwrap();
                        table.get(id).expect("known while somebody counts");
                        table.enter(path_fd(&file), &stat).unwrap();
                        table.forget(id, 2);
                    }
                });
            }
        });
        assert_eq!(table.known(), (0, 0));
        assert_eq!(table.get(id).unwrap_err(), Errno::STALE);
    }

    #[test]
    fn a_node_outlives_its_name_and_a_reused_number_gets_a_new_generation() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "old").unwrap();
        let table = table(dir.path());
        let stat = fstat(path_fd(&file)).unwrap();
        let id = table.id_of(stat.st_ino);
        let first = table.enter(path_fd(&file), &stat).unwrap().generation();
        std::fs::remove_file(&file).unwrap();
        let node = table.get(id).unwrap();
        assert_eq!(std::fs::read(node.magic_link()).unwrap(), b"old");
        drop(node);
        table.forget(id, 1);
        std::fs::write(&file, "new").unwrap();
        let stat = fstat(path_fd(&file)).unwrap();
        let second = table.enter(path_fd(&file), &stat).unwrap().generation();
        assert_ne!(first, second);
    }

    #[test]
    fn the_root_is_one_and_another_device_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path());
        let root_ino = fstat(path_fd(dir.path())).unwrap().st_ino;
        assert_eq!(table.id_of(root_ino), NodeId::ROOT);
        assert_eq!(table.id_of(1), NodeId(root_ino));
        assert_eq!(table.id_of(12345678), NodeId(12345678));
        table.forget(NodeId::ROOT, 1_000_000);
        table.get(NodeId::ROOT).unwrap();
        let proc = path_fd(Path::new("/proc/version"));
        let stat = fstat(&proc).unwrap();
        assert_eq!(table.enter(proc, &stat).unwrap_err(), Errno::XDEV);
    }
}
