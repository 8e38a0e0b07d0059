//! The node table: every inode that the kernel knows, with its lookup count.
//!
//! A node id is the backing inode number, so that it is the same after a restart and
//! the same in every listing. The kernel calls the root 1; the root's own number and 1
//! change places, which keeps the mapping one to one. The generation of the backing
//! inode tells files apart that had one number after the other.
//!
//! An inode is kept as its file handle, four bytes of it, and found again by
//! open_by_handle_at(2). Descriptors are only a cache, of a fixed size, which gives up
//! the one that was not used for longest (CLOCK); who uses one keeps it open. Where
//! handles do not work, each node is pinned: its descriptor stays open until FORGET.
//! So is an inode whose last name is gone, everywhere: a working directory or an
//! `O_PATH` descriptor of a client holds it without an OPEN, and once out of memory
//! it cannot be found again.
//!
//! The kernel's lookup count is raised here, under the lock, before the reply is sent,
//! and lowered by FORGET; at zero the node goes. FORGET says no generation, so the
//! files that have had a number share one count.
//!
//! A descriptor holds its inode, and an inode its number, so while one is held a second
//! descriptor of the same number is of the same inode. This spares most lookups the
//! handle.
//!
//! The locks never leave this file. They are held to look at maps and to change them,
//! never across a system call; what is thrown out closes after the lock.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, openat};
use rustix::process::{Resource, getrlimit};

use super::handle::{FileHandle, Form, Identity};
use super::lower::{Kernel, Lower};
use super::{Kind, Node, NodeId};
use crate::mutant::{Mutant, active};
use crate::sync::{AtomicU64, Mutex, MutexGuard};
use crate::{Errno, Result};

const SHARDS: u64 = 64;

/// Descriptors cached in each shard when the limit of open files permits: 4096 in all.
const SLOTS: u64 = 64;

/// Where a known inode's descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    No,
    Cached(u8),
    Pinned,
}

/// A known inode; its number is the key. There may be millions, so this is packed: 16
/// bytes, and the rare parts are in maps of their own.
#[derive(Debug)]
struct Entry {
    lookups: u64,
    generation: u32,
    form: Form,
    kind: Kind,
    held: Held,
}

impl Entry {
    fn identity(&self) -> Identity {
        Identity {
            form: self.form,
            generation: self.generation,
        }
    }
}

/// A handle of a form that this code does not know.
#[derive(Debug)]
struct WholeHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

/// A cached descriptor.
#[derive(Debug)]
struct Slot<F> {
    id: NodeId,
    node: Arc<Node<F>>,
    /// Since the hand last passed.
    used: bool,
}

/// The nodes whose ids leave the same remainder, and what is known of them.
#[derive(Debug)]
struct Shard<F> {
    entries: HashMap<NodeId, Entry>,
    whole: HashMap<NodeId, WholeHandle>,
    pinned: HashMap<NodeId, Arc<Node<F>>>,
    cache: Vec<Option<Slot<F>>>,
    hand: usize,
}

/// What a lookup found out about an inode before it takes the lock.
struct Found<F> {
    fd: F,
    identity: Identity,
    handle: Option<FileHandle>,
    kind: Kind,
}

/// How the table finds inodes again.
#[derive(Debug)]
enum Resolve {
    /// By handle; this is the root's.
    Handle(FileHandle),
    /// Not at all, so each stays open.
    Pinned,
}

/// All inodes that the kernel knows, with its lookup counts.
#[derive(Debug)]
pub(crate) struct NodeTable<L: Lower = Kernel> {
    lower: L,
    resolve: Resolve,
    root: Arc<Node<L::Fd>>,
    root_ino: u64,
    device: u64,
    /// Generations where the filesystem below has none.
    generations: AtomicU64,
    /// Inodes of which a name was removed: see [`NodeTable::enter`].
    removals: AtomicU64,
    shards: Vec<Mutex<Shard<L::Fd>>>,
}

impl NodeTable {
    /// A table whose root is the directory `root`, an `O_PATH` descriptor.
    ///
    /// The cache of descriptors takes at most half of what the process may open.
    pub(crate) fn new(root: OwnedFd) -> Result<Self> {
        let (lower, handles) = Kernel::probe(&root);
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let slots = (limit / 2 / SHARDS).clamp(1, SLOTS) as usize;
        match &handles {
            Ok(_) => tracing::info!(
                descriptors = slots * SHARDS as usize,
                "inodes are resolved by file handle"
            ),
            Err(reason) => tracing::info!(reason, "each known inode keeps a descriptor open"),
        }
        Self::with(lower, handles.ok(), root, slots)
    }
}

impl NodeTable<Kernel> {
    /// Opens the inode of a node itself, whatever its name is by now, with these flags of
    /// open(2).
    ///
    /// # Errors
    /// Those of [`NodeTable::get`] and open(2).
    pub(crate) fn open(&self, id: NodeId, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        match self.handle_to_open(id) {
            Some(handle) => self.lower.open_file(&handle, flags),
            None => {
                let link = self.get(id)?.magic_link();
                openat(CWD, link.as_c_str(), flags, Mode::empty())
            }
        }
    }

    /// The handle of a node that is not pinned: one that has no name can be found by its
    /// descriptor alone.
    fn handle_to_open(&self, id: NodeId) -> Option<FileHandle> {
        if !self.resolves_by_handle() || id == NodeId::ROOT {
            return None;
        }
        let shard = self.shard(id);
        let entry = shard.entries.get(&id)?;
        if entry.held == Held::Pinned {
            return None;
        }
        self.handle_of(id, entry, &shard)
    }
}

impl<L: Lower> NodeTable<L> {
    /// What a node is; an inode does not change its kind.
    ///
    /// # Errors
    /// ESTALE when the id is unknown.
    pub(crate) fn kind(&self, id: NodeId) -> Result<FileType> {
        if id == NodeId::ROOT {
            return Ok(FileType::Directory);
        }
        let shard = self.shard(id);
        let entry = shard.entries.get(&id).ok_or(Errno::STALE)?;
        Ok(entry.kind.file_type())
    }

    /// A table of inodes of `lower`, resolved by handle if there is one of the root,
    /// with `slots` cached descriptors in each shard, at most 256.
    pub(super) fn with(
        lower: L,
        root_handle: Option<FileHandle>,
        root: L::Fd,
        slots: usize,
    ) -> Result<Self> {
        let stat = lower.stat(&root)?;
        let kind = Kind::of(stat.st_mode);
        if kind.file_type() != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        Ok(NodeTable {
            lower,
            resolve: root_handle.map_or(Resolve::Pinned, Resolve::Handle),
            root: Arc::new(Node {
                fd: root,
                generation: 0,
            }),
            root_ino: stat.st_ino,
            device: stat.st_dev,
            generations: AtomicU64::new(1),
            removals: AtomicU64::new(0),
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(slots))).collect(),
        })
    }

    /// Whether inodes are found again by file handle; if not, each known one keeps a
    /// descriptor open.
    pub(crate) fn resolves_by_handle(&self) -> bool {
        matches!(self.resolve, Resolve::Handle(_))
    }

    /// The node id of a backing inode number; the mapping is its own inverse.
    pub(crate) fn id_of(&self, ino: u64) -> NodeId {
        match ino {
            ino if ino == self.root_ino => NodeId::ROOT,
            1 => NodeId(self.root_ino),
            ino => NodeId(ino),
        }
    }

    fn ino_of(&self, id: NodeId) -> u64 {
        self.id_of(id.0).0
    }

    /// The inode behind a node id.
    ///
    /// # Errors
    /// ESTALE when the id is unknown, or its inode is no more because somebody removed
    /// it behind the mount's back; those of open_by_handle_at(2).
    pub(crate) fn get(&self, id: NodeId) -> Result<Arc<Node<L::Fd>>> {
        if id == NodeId::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let (identity, handle) = {
            let mut shard = self.shard(id);
            if let Some(node) = shard.held(id) {
                return Ok(node);
            }
            let entry = shard.entries.get(&id).ok_or(Errno::STALE)?;
            (entry.identity(), self.handle_of(id, entry, &shard))
        };
        let opened = self.lower.open_by_handle(&handle.ok_or(Errno::STALE)?);
        let opened = opened.map(|fd| {
            Arc::new(Node {
                fd,
                generation: identity.generation,
            })
        });
        let mut shard = self.shard(id);
        // Meanwhile it may have been forgotten.
        if !shard.entries.contains_key(&id) {
            return opened;
        }
        // Somebody else may have opened or pinned it; ours closes after the lock.
        if let Some(node) = shard.held(id) {
            return Ok(node);
        }
        let node = opened?;
        let evicted = shard.cache(id, Arc::clone(&node));
        drop(shard);
        drop(evicted);
        Ok(node)
    }

    /// Notes one lookup of what `name` stands for in `parent`, without opening it, and
    /// says its generation and what fstatat(2) said of it. That takes two system calls, and
    /// the name may be given to another inode between them: None when there is a sign
    /// of it, or the inode must be opened anyway. Nothing is noted then, and
    /// [`NodeTable::enter`] is the way.
    ///
    /// If the inode changes behind the mount's back just then, the attributes may be those
    /// of a successor with the same number; but the handle was asked for before, so
    /// whoever uses the node is told ESTALE and looks again.
    ///
    /// # Errors
    /// ENOENT.
    pub(crate) fn look_up(
        &self,
        parent: &Node<L::Fd>,
        name: &OsStr,
    ) -> Result<Option<(u64, Stat)>> {
        let Resolve::Handle(root) = &self.resolve else {
            return Ok(None);
        };
        let removals = self.removals.load(Ordering::Acquire);
        let handle = match self.lower.handle_at(&parent.fd, name) {
            Ok(Some(handle)) => handle,
            Err(Errno::NOENT) => return Err(Errno::NOENT),
            Ok(None) | Err(_) => return Ok(None),
        };
        let Ok(stat) = self.lower.stat_at(&parent.fd, name) else {
            return Ok(None);
        };
        let id = self.id_of(stat.st_ino);
        let identity = Identity::of(&handle, stat.st_ino, root);
        if stat.st_dev != self.device
            || stat.st_nlink == 0
            || id == NodeId::ROOT
            || identity.form == Form::Whole
        {
            return Ok(None);
        }
        let mut shard = self.shard(id);
        // Under the lock: who removes the last name counts that first and looks here then,
        // so it finds this node, or else is seen. And what is known by this number
        // may be the successor; only who holds an inode can tell.
        if self.removals.load(Ordering::Acquire) != removals
            || (shard.entries.contains_key(&id) && !shard.is_known(id, identity, Some(&handle)))
        {
            return Ok(None);
        }
        let kind = Kind::of(stat.st_mode);
        let generation = shard.note(id, identity, kind, Some(&handle));
        Ok(Some((generation.into(), stat)))
    }

    /// Notes one lookup of the inode of which `fd` is an `O_PATH` descriptor, and says
    /// what fstat(2) said of it. An inode without a name is pinned.
    ///
    /// # Errors
    /// EXDEV when the inode is not on the root's device: two files with one number must
    /// never share a node id. Those of fstat(2) and name_to_handle_at(2).
    pub(crate) fn enter(&self, fd: L::Fd) -> Result<(Arc<Node<L::Fd>>, Stat)> {
        let removals = self.removals.load(Ordering::Acquire);
        let mut stat = self.lower.stat(&fd)?;
        if stat.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        let id = self.id_of(stat.st_ino);
        if id == NodeId::ROOT {
            return Ok((Arc::clone(&self.root), stat));
        }
        let node = match self.count(id) {
            Some(node) => node,
            None => {
                let found = self.find_out(fd, &stat)?;
                self.insert(id, found)
            }
        };
        // If the last name went after fstat(2) and before this node was known, whoever
        // removed it found nothing to pin; but then it has counted the removal.
        if self.removals.load(Ordering::Acquire) != removals
            && let Ok(now) = self.lower.stat(&node.fd)
        {
            stat = now;
        }
        if stat.st_nlink == 0 {
            self.pin(id, Arc::clone(&node));
        }
        Ok((node, stat))
    }

    /// Notes one lookup of an inode whose descriptor is held.
    fn count(&self, id: NodeId) -> Option<Arc<Node<L::Fd>>> {
        let mut shard = self.shard(id);
        let node = shard.held(id)?;
        shard.count(id);
        Some(node)
    }

    /// Asks for the handle of an inode.
    fn find_out(&self, fd: L::Fd, stat: &Stat) -> Result<Found<L::Fd>> {
        let handle = self.lower.name_to_handle(&fd);
        let (identity, handle) = match (&self.resolve, handle) {
            (Resolve::Handle(root), handle) => {
                let handle = handle?;
                (Identity::of(&handle, stat.st_ino, root), Some(handle))
            }
            (Resolve::Pinned, Ok(handle)) => {
                let Identity { generation, .. } = Identity::of(&handle, stat.st_ino, &handle);
                (Identity::absent(generation), None)
            }
            (Resolve::Pinned, Err(_)) => {
                let number = self.generations.fetch_add(1, Ordering::Relaxed);
                (Identity::absent(number as u32), None)
            }
        };
        Ok(Found {
            fd,
            identity,
            handle,
            kind: Kind::of(stat.st_mode),
        })
    }

    /// Notes one lookup of an inode that was just made and that `file` keeps open, and says
    /// its generation and what fstat(2) said of it. No descriptor is kept; where one
    /// must be, or the inode has no name and is to be pinned, nothing is noted.
    ///
    /// # Errors
    /// Those of [`NodeTable::enter`].
    pub(crate) fn enter_made(&self, file: &L::Fd) -> Result<Option<(u64, Stat)>> {
        let Resolve::Handle(root) = &self.resolve else {
            return Ok(None);
        };
        let stat = self.lower.stat(file)?;
        if stat.st_dev != self.device {
            return Err(Errno::XDEV);
        }
        if stat.st_nlink == 0 {
            return Ok(None);
        }
        let handle = self.lower.name_to_handle(file)?;
        let identity = Identity::of(&handle, stat.st_ino, root);
        let id = self.id_of(stat.st_ino);
        let kind = Kind::of(stat.st_mode);
        let mut shard = self.shard(id);
        let generation = match shard.held(id) {
            Some(held) => {
                shard.count(id);
                held.generation
            }
            None => shard.note(id, identity, kind, Some(&handle)),
        };
        Ok(Some((generation.into(), stat)))
    }

    /// Notes one lookup of an inode whose descriptor was not held a moment ago.
    fn insert(&self, id: NodeId, found: Found<L::Fd>) -> Arc<Node<L::Fd>> {
        let Found {
            fd,
            identity,
            handle,
            kind,
        } = found;
        let mut shard = self.shard(id);
        if let Some(held) = shard.held(id) {
            // The same inode: see above. Our descriptor closes after the lock.
            shard.count(id);
            drop(shard);
            return held;
        }
        let generation = shard.note(id, identity, kind, handle.as_ref());
        let node = Arc::new(Node { fd, generation });
        let thrown_out = if self.resolves_by_handle() {
            shard.cache(id, Arc::clone(&node))
        } else {
            shard.pin(id, Arc::clone(&node))
        };
        drop(shard);
        drop(thrown_out);
        node
    }

    /// Pins the inode of `fd`, an `O_PATH` descriptor opened before a name of it was
    /// removed, if that was the last and the kernel knows the inode. With the
    /// descriptor open all the while, nobody can miss the inode in between, and of two
    /// who remove the last two names one at least sees that none is left.
    pub(crate) fn name_removed(&self, fd: L::Fd) {
        if let Err(error) = self.pin_nameless(fd) {
            tracing::error!(%error, "a removed inode may be lost to those who still hold it");
        }
    }

    fn pin_nameless(&self, fd: L::Fd) -> Result<()> {
        let stat = self.lower.stat(&fd)?;
        let id = self.id_of(stat.st_ino);
        if stat.st_nlink != 0 || stat.st_dev != self.device || id == NodeId::ROOT {
            return Ok(());
        }
        // Before the look at the table: whoever enters the inode after that sees this.
        self.removals.fetch_add(1, Ordering::AcqRel);
        if !self.shard(id).entries.contains_key(&id) {
            return Ok(());
        }
        let found = self.find_out(fd, &stat)?;
        let (identity, handle) = (found.identity, found.handle);
        let node = Arc::new(Node {
            fd: found.fd,
            generation: identity.generation,
        });
        let mut shard = self.shard(id);
        // The number may stand for a file of which this one was the successor.
        let thrown_out = match shard.is_known(id, identity, handle.as_ref()) {
            true => shard.pin(id, node),
            false => Some(node),
        };
        drop(shard);
        drop(thrown_out);
        Ok(())
    }

    /// Pins `node` if its id still stands for it.
    fn pin(&self, id: NodeId, node: Arc<Node<L::Fd>>) {
        let mut shard = self.shard(id);
        let is_same = match shard.entries.get(&id) {
            Some(entry) => entry.generation == node.generation && entry.held != Held::Pinned,
            None => false,
        };
        let thrown_out = if is_same {
            shard.pin(id, node)
        } else {
            Some(node)
        };
        drop(shard);
        drop(thrown_out);
    }

    /// Undoes the pinning of an inode without a name that has got one: `node` is what
    /// [`NodeTable::get`] gave before it was linked. If the name has gone again, then
    /// somebody else has pinned it since, and it stays.
    pub(crate) fn name_given(&self, id: NodeId, node: &Arc<Node<L::Fd>>) {
        if !self.resolves_by_handle() {
            return;
        }
        let mut shard = self.shard(id);
        let is_same = |pinned: &Arc<Node<L::Fd>>| Arc::ptr_eq(pinned, node);
        if !shard.pinned.get(&id).is_some_and(is_same) {
            return;
        }
        let unpinned = shard.pinned.remove(&id);
        let evicted = shard.cache(id, Arc::clone(node));
        drop(shard);
        drop((unpinned, evicted));
    }

    /// Takes back `lookups` lookups of a node; at zero it is forgotten.
    pub(crate) fn forget(&self, id: NodeId, lookups: u64) {
        if id == NodeId::ROOT {
            return;
        }
        let lookups = if active(Mutant::ForgetMiscounted) {
            1
        } else {
            lookups
        };
        let mut shard = self.shard(id);
        let Some(entry) = shard.entries.get_mut(&id) else {
            drop(shard);
            tracing::error!(?id, lookups, "FORGET of an unknown node");
            return;
        };
        let known = entry.lookups;
        entry.lookups = known.saturating_sub(lookups);
        // Dropped after the lock: closing the descriptor of a deleted file frees its
        // blocks, which can take long.
        let forgotten = if entry.lookups == 0 {
            shard.remove(id)
        } else {
            None
        };
        drop(shard);
        drop(forgotten);
        if known < lookups {
            tracing::error!(?id, lookups, known, "FORGET of too many");
        }
    }

    fn handle_of(&self, id: NodeId, entry: &Entry, shard: &Shard<L::Fd>) -> Option<FileHandle> {
        if let Some(whole) = shard.whole.get(&id) {
            return Some(FileHandle::new(whole.kind, &[&whole.bytes]));
        }
        match &self.resolve {
            Resolve::Handle(root) => entry.identity().handle(self.ino_of(id), root),
            Resolve::Pinned => None,
        }
    }

    fn shard(&self, id: NodeId) -> Guard<'_, L::Fd> {
        self.shards[(id.0 % SHARDS) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How many nodes besides the root are known, and the sum of their counts.
    #[cfg(test)]
    pub(crate) fn known(&self) -> (usize, u64) {
        self.shards.iter().fold((0, 0), |(nodes, lookups), shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let counts = shard.entries.values().map(|entry| entry.lookups);
            (nodes + shard.entries.len(), lookups + counts.sum::<u64>())
        })
    }
}

type Guard<'a, F> = MutexGuard<'a, Shard<F>>;

impl<F> Shard<F> {
    fn new(slots: usize) -> Self {
        Shard {
            entries: HashMap::new(),
            whole: HashMap::new(),
            pinned: HashMap::new(),
            cache: (0..slots.clamp(1, 256)).map(|_| None).collect(),
            hand: 0,
        }
    }

    /// The node of a held descriptor, which from now on has been used.
    fn held(&mut self, id: NodeId) -> Option<Arc<Node<F>>> {
        match self.entries.get(&id)?.held {
            Held::No => None,
            Held::Pinned => self.pinned.get(&id).cloned(),
            Held::Cached(index) => {
                let slot = self.cache[usize::from(index)].as_mut()?;
                slot.used = true;
                Some(Arc::clone(&slot.node))
            }
        }
    }

    /// Counts one more lookup of a known node.
    fn count(&mut self, id: NodeId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.lookups += 1;
        }
    }

    /// Counts one lookup of an inode of which no descriptor is held, known or not;
    /// returns the generation to show.
    fn note(
        &mut self,
        id: NodeId,
        identity: Identity,
        kind: Kind,
        handle: Option<&FileHandle>,
    ) -> u32 {
        let known = self.is_known(id, identity, handle);
        let entry = match self.entries.entry(id) {
            Place::Vacant(place) => place.insert(Entry {
                lookups: 0,
                generation: identity.generation,
                form: identity.form,
                kind,
                held: Held::No,
            }),
            Place::Occupied(place) => place.into_mut(),
        };
        entry.lookups += 1;
        if known {
            return identity.generation;
        }
        // New, or the number was given to a new file behind the mount's back. The kernel
        // learns it from the generation; what it still holds of the old file it forgets
        // by number.
        let shown = if active(Mutant::StaleGeneration) {
            entry.generation
        } else {
            identity.generation
        };
        entry.generation = identity.generation;
        entry.form = identity.form;
        entry.kind = kind;
        self.keep_whole(id, identity, handle);
        shown
    }

    /// Whether the id stands for the inode with this identity.
    fn is_known(&self, id: NodeId, identity: Identity, handle: Option<&FileHandle>) -> bool {
        let same = |entry: &Entry| entry.identity() == identity;
        self.entries.get(&id).is_some_and(same)
            && match (self.whole.get(&id), handle) {
                (Some(whole), Some(handle)) => {
                    (whole.kind, &*whole.bytes) == (handle.kind(), handle.bytes())
                }
                (Some(_), None) => false,
                (None, _) => true,
            }
    }

    /// Keeps the handle whole if that is what this form needs.
    fn keep_whole(&mut self, id: NodeId, identity: Identity, handle: Option<&FileHandle>) {
        match handle {
            Some(handle) if identity.form == Form::Whole => {
                let whole = WholeHandle {
                    kind: handle.kind(),
                    bytes: handle.bytes().into(),
                };
                self.whole.insert(id, whole);
            }
            _ => {
                self.whole.remove(&id);
            }
        }
    }

    /// Puts the descriptor of a known node, of which none is held, into the cache;
    /// returns the one for which there is no more room.
    fn cache(&mut self, id: NodeId, node: Arc<Node<F>>) -> Option<Arc<Node<F>>> {
        // After one turn of the hand none has been used.
        while let Some(slot) = self.cache[self.hand].as_mut().filter(|slot| slot.used) {
            slot.used = false;
            self.hand = (self.hand + 1) % self.cache.len();
        }
        let index = self.hand;
        self.hand = (self.hand + 1) % self.cache.len();
        let slot = Slot {
            id,
            node,
            used: false,
        };
        let evicted = self.cache[index].replace(slot);
        if let Some(slot) = &evicted {
            self.set_held(slot.id, Held::No);
        }
        // At most 256 slots.
        self.set_held(id, Held::Cached(index as u8));
        evicted.map(|slot| slot.node)
    }

    /// Pins a known node; returns the descriptor that was held before.
    fn pin(&mut self, id: NodeId, node: Arc<Node<F>>) -> Option<Arc<Node<F>>> {
        let before = self.let_go(id);
        self.pinned.insert(id, node);
        self.set_held(id, Held::Pinned);
        before
    }

    /// Takes the descriptor of a node out of cache or pinning.
    fn let_go(&mut self, id: NodeId) -> Option<Arc<Node<F>>> {
        match self.entries.get(&id)?.held {
            Held::No => None,
            Held::Pinned => self.pinned.remove(&id),
            Held::Cached(index) => self.cache[usize::from(index)].take().map(|slot| slot.node),
        }
    }

    /// Forgets a node; returns its descriptor.
    fn remove(&mut self, id: NodeId) -> Option<Arc<Node<F>>> {
        let held = self.let_go(id);
        self.entries.remove(&id);
        self.whole.remove(&id);
        held
    }

    fn set_held(&mut self, id: NodeId, held: Held) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.held = held;
        }
    }
}

#[cfg(test)]
mod layout {
    use super::*;

    #[test]
    fn a_known_inode_takes_sixteen_bytes_and_its_number() {
        assert_eq!(size_of::<(NodeId, Entry)>(), 24);
    }
}

// Not with shuttle's locks, which work in models alone.
#[cfg(all(test, not(feature = "shuttle")))]
#[path = "tests.rs"]
mod tests;
