//! How the kernel does the I/O of an inode, the same for all its opens at a time.
//!
//! With `FUSE_PASSTHROUGH` the kernel reads and writes a backing file itself. All opens
//! of one inode must then name the same backing file, and none may be without one
//! (fs/fuse/iomode.c): another number or a plain open fails with EIO. So the first open
//! of an inode settles it, the others follow, and the last close gives the number back.
//!
//! The locks never leave this file. They are held while a backing file is registered,
//! which waits for no disk.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use plugpull_fuse::BackingId;

use crate::NodeId;

const SHARDS: u64 = 64;

/// Which inodes are open, how often, and through which backing file.
#[derive(Debug)]
pub(crate) struct IoModes {
    shards: Vec<Mutex<HashMap<NodeId, InUse>>>,
}

#[derive(Debug)]
struct InUse {
    opens: u64,
    backing: Option<BackingId>,
}

impl IoModes {
    pub(crate) fn new() -> Self {
        IoModes {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// Notes one open of a node. The first one calls `settle`; `None` there means
    /// that the server does the I/O until the last open is gone.
    pub(crate) fn enter(
        &self,
        node: NodeId,
        settle: impl FnOnce() -> Option<BackingId>,
    ) -> Option<BackingId> {
        let mut map = self.shard(node);
        let in_use = map.entry(node).or_insert_with(|| InUse {
            opens: 0,
            backing: settle(),
        });
        in_use.opens += 1;
        in_use.backing
    }

    /// Takes one open of a node back; returns the backing file of the last one.
    pub(crate) fn leave(&self, node: NodeId) -> Option<BackingId> {
        let mut map = self.shard(node);
        let in_use = map.get_mut(&node)?;
        in_use.opens -= 1;
        if in_use.opens > 0 {
            return None;
        }
        map.remove(&node)?.backing
    }

    fn shard(&self, node: NodeId) -> std::sync::MutexGuard<'_, HashMap<NodeId, InUse>> {
        self.shards[(node.number() % SHARDS) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_open_settles_and_the_last_gives_back() {
        let modes = IoModes::new();
        let (a, b) = (NodeId::ROOT, NodeId::from(2));
        let backing = Some(BackingId(7));
        assert_eq!(modes.enter(a, || backing), backing);
        assert_eq!(modes.enter(a, || unreachable!()), backing);
        assert_eq!(modes.enter(b, || None), None);
        assert_eq!(modes.enter(b, || unreachable!()), None);
        assert_eq!(modes.leave(a), None);
        assert_eq!(modes.leave(a), backing);
        assert_eq!(modes.leave(a), None, "a second RELEASE is harmless");
        assert_eq!((modes.leave(b), modes.leave(b)), (None, None));
        assert_eq!(modes.enter(a, || None), None, "settled anew");
    }
}
