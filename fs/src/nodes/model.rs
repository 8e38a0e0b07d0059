//! The node table under every order of threads that shuttle thinks of.
//!
//! Simulated are a lower filesystem, whose inode numbers are given away again, lowest
//! first, as soon as nothing holds them, and the kernel, as far as it counts: every
//! thread looks names up, uses what it has looked up and forgets it. The cache has room
//! for one descriptor or two, and all numbers fall to one shard. Threads may be switched at
//! every lock and at every system call. The locks that the kernel holds on directories
//! are left out, so there are more orders than in reality; only, who removes a name has
//! seen what it stands for.
//!
//! What must hold: a node can be used until it is forgotten, even if its last name goes
//! meanwhile; what is served is an inode that was looked up, with its own generation,
//! never a successor by number; when all is forgotten, nothing is known and nothing is
//! open; nothing is closed twice.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, openat};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use super::handle::FileHandle;
use super::lower::Lower;
use super::{Node, NodeId, NodeTable};
#[cfg(feature = "mutants")]
use crate::mutant::Mutant;
use crate::sync::explore;
#[cfg(feature = "mutants")]
use crate::sync::must_catch;
use crate::{Errno, Result};

const ROOT: u64 = 2;

/// Numbers of one shard.
const STEP: u64 = 64;

#[derive(Debug)]
struct Inode {
    generation: u32,
    links: u32,
    open: u32,
    /// Made without a name and never linked (`I_LINKABLE`).
    linkable: bool,
}

#[derive(Default)]
struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<&'static str, u64>,
    generations: u32,
}

impl State {
    fn make(&mut self, links: u32) -> u64 {
        let number = (1..)
            .map(|n| n * STEP)
            .find(|n| !self.inodes.contains_key(n));
        let number = number.unwrap();
        self.generations += 1;
        let inode = Inode {
            generation: self.generations,
            links,
            open: 0,
            linkable: links == 0,
        };
        self.inodes.insert(number, inode);
        number
    }

    fn inode(&mut self, number: u64) -> &mut Inode {
        self.inodes.get_mut(&number).expect("a held inode exists")
    }

    fn number(&self, name: &OsStr) -> Result<u64> {
        let name = name.to_str().and_then(|name| self.names.get(name));
        name.copied().ok_or(Errno::NOENT)
    }

    /// An inode is gone with its last name and its last descriptor.
    fn reap(&mut self, number: u64) {
        let inode = self.inode(number);
        if inode.links == 0 && inode.open == 0 {
            self.inodes.remove(&number);
        }
    }
}

/// The lower filesystem.
#[derive(Clone)]
struct Disk(Arc<Shared>);

struct Shared {
    /// Looked at by nobody; an atomic operation is where shuttle may switch threads.
    steps: AtomicU64,
    state: Mutex<State>,
    template: Stat,
    /// Every inode that anybody began to look up.
    looked_up: Mutex<HashSet<(u64, u32)>>,
}

impl Disk {
    fn new() -> Self {
        let root = openat(CWD, "/", OFlags::PATH, Mode::empty()).unwrap();
        let mut state = State::default();
        let inode = Inode {
            generation: 0,
            links: 2,
            open: 0,
            linkable: false,
        };
        state.inodes.insert(ROOT, inode);
        Disk(Arc::new(Shared {
            steps: AtomicU64::new(0),
            state: Mutex::new(state),
            template: fstat(root).unwrap(),
            looked_up: Mutex::default(),
        }))
    }

    /// The state, in a system call.
    fn call(&self) -> MutexGuard<'_, State> {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, name: &'static str) -> u64 {
        let mut state = self.call();
        let number = state.make(1);
        state.names.insert(name, number);
        number
    }

    /// Another name for an inode.
    fn link(&self, number: u64, name: &'static str) -> Result<()> {
        let mut state = self.call();
        let inode = state.inode(number);
        if inode.links == 0 && !inode.linkable {
            return Err(Errno::NOENT);
        }
        inode.linkable = false;
        inode.links += 1;
        state.names.insert(name, number);
        Ok(())
    }

    fn unlink(&self, name: &'static str) -> Result<()> {
        let mut state = self.call();
        let number = state.names.remove(name).ok_or(Errno::NOENT)?;
        state.inode(number).links -= 1;
        state.reap(number);
        Ok(())
    }

    fn rename(&self, from: &'static str, to: &'static str) -> Result<()> {
        let mut state = self.call();
        let number = state.names.remove(from).ok_or(Errno::NOENT)?;
        if let Some(victim) = state.names.insert(to, number) {
            state.inode(victim).links -= 1;
            state.reap(victim);
        }
        Ok(())
    }

    fn open(&self, name: &'static str) -> Result<Fd> {
        let mut state = self.call();
        let number = state.number(OsStr::new(name))?;
        Ok(self.descriptor(&mut state, number))
    }

    fn open_unnamed(&self) -> Fd {
        let mut state = self.call();
        let number = state.make(0);
        self.descriptor(&mut state, number)
    }

    fn descriptor(&self, state: &mut State, number: u64) -> Fd {
        let inode = state.inode(number);
        inode.open += 1;
        Fd {
            disk: self.clone(),
            number,
            generation: inode.generation,
        }
    }

    fn stat_of(&self, number: u64, links: u32) -> Stat {
        let mut stat = self.0.template;
        if number != ROOT {
            stat.st_mode = libc::S_IFREG | 0o644;
        }
        stat.st_ino = number;
        stat.st_nlink = links.into();
        stat
    }

    fn looked_up(&self) -> MutexGuard<'_, HashSet<(u64, u32)>> {
        let looked_up = &self.0.looked_up;
        looked_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_descriptors(&self) -> u32 {
        self.call().inodes.values().map(|inode| inode.open).sum()
    }
}

/// A descriptor, which holds its inode.
struct Fd {
    disk: Disk,
    number: u64,
    generation: u32,
}

impl Drop for Fd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut state = self.disk.call();
        let inode = state.inode(self.number);
        let is_held = inode.open > 0 && inode.generation == self.generation;
        inode.open = inode.open.saturating_sub(1);
        state.reap(self.number);
        drop(state);
        assert!(is_held, "a descriptor is closed twice");
    }
}

impl Lower for Disk {
    type Fd = Fd;

    fn stat(&self, fd: &Fd) -> Result<Stat> {
        let links = self.call().inode(fd.number).links;
        Ok(self.stat_of(fd.number, links))
    }

    fn name_to_handle(&self, fd: &Fd) -> Result<FileHandle> {
        drop(self.call());
        Ok(handle(fd.number, fd.generation))
    }

    fn handle_at(&self, _root: &Fd, name: &OsStr) -> Result<Option<FileHandle>> {
        let mut state = self.call();
        let number = state.number(name)?;
        let generation = state.inode(number).generation;
        self.looked_up().insert((number, generation));
        Ok(Some(handle(number, generation)))
    }

    fn stat_at(&self, _root: &Fd, name: &OsStr) -> Result<Stat> {
        let mut state = self.call();
        let number = state.number(name)?;
        let links = state.inode(number).links;
        Ok(self.stat_of(number, links))
    }

    fn open_by_handle(&self, handle: &FileHandle) -> Result<Fd> {
        let word = |at: usize| handle.bytes()[at..at + 4].try_into().unwrap();
        let number = u32::from_ne_bytes(word(0)).into();
        let generation = u32::from_ne_bytes(word(4));
        let mut state = self.call();
        match state.inodes.get(&number) {
            Some(inode) if inode.generation == generation => {
                Ok(self.descriptor(&mut state, number))
            }
            _ => Err(Errno::STALE),
        }
    }
}

fn handle(number: u64, generation: u32) -> FileHandle {
    let number = number as u32;
    FileHandle::new(1, &[&number.to_ne_bytes(), &generation.to_ne_bytes()])
}

/// What the kernel has looked up and not forgotten, in one thread.
#[derive(Debug, Clone, Copy)]
struct Known {
    id: NodeId,
    generation: u32,
}

struct World {
    disk: Disk,
    table: NodeTable<Disk>,
}

impl World {
    /// A world with room for so many cached descriptors.
    fn new(slots: usize) -> Arc<Self> {
        let disk = Disk::new();
        let root = disk.descriptor(&mut disk.call(), ROOT);
        let handle = handle(ROOT, root.generation);
        let table = NodeTable::with(disk.clone(), Some(handle), root, slots).unwrap();
        Arc::new(World { disk, table })
    }

    /// As `Passthrough::lookup` does it.
    fn lookup(&self, name: &'static str) -> Result<Known> {
        let root = self.table.get(NodeId::ROOT)?;
        if let Some((generation, stat)) = self.table.look_up(&root, OsStr::new(name))? {
            let generation = u32::try_from(generation).unwrap();
            let id = self.table.id_of(stat.st_ino);
            return Ok(Known { id, generation });
        }
        self.enter(self.disk.open(name)?).map(|(known, _)| known)
    }

    fn enter(&self, fd: Fd) -> Result<(Known, Stat)> {
        let (number, generation) = (fd.number, fd.generation);
        self.disk.looked_up().insert((number, generation));
        let (node, stat) = self.table.enter(fd)?;
        let told = node.generation();
        assert_eq!(
            told,
            generation.into(),
            "the kernel is told a wrong generation"
        );
        self.check(&node);
        let id = self.table.id_of(number);
        Ok((Known { id, generation }, stat))
    }

    /// What a request for a node is answered.
    fn request(&self, known: Known) -> Result<u32> {
        let node = self.table.get(known.id)?;
        self.check(&node);
        Ok(node.fd.generation)
    }

    /// A request that must reach the inode, because nobody works behind the mount.
    fn must_reach(&self, known: Known) {
        assert_eq!(
            self.request(known),
            Ok(known.generation),
            "a known inode is lost"
        );
    }

    fn check(&self, node: &Node<Fd>) {
        let inode = (node.fd.number, node.fd.generation);
        let was_looked_up = self.disk.looked_up().contains(&inode);
        assert!(was_looked_up, "an inode is served that nobody looked up");
        // It is still there and still itself.
        let generation = self.disk.call().inode(inode.0).generation;
        assert_eq!(generation, inode.1, "a closed descriptor is served");
    }

    /// As `Passthrough::removing` does it.
    fn removing(&self, name: &'static str, remove: impl FnOnce() -> Result<()>) {
        let Ok(victim) = self.disk.open(name) else {
            return;
        };
        if remove().is_ok() {
            self.table.name_removed(victim);
        }
    }

    fn unlink(&self, name: &'static str) {
        self.removing(name, || self.disk.unlink(name));
    }

    fn rename(&self, from: &'static str, to: &'static str) {
        self.removing(to, || self.disk.rename(from, to));
    }

    /// As `Passthrough::link` does it.
    fn link(&self, known: Known, name: &'static str) -> Result<Known> {
        let node = self.table.get(known.id)?;
        self.disk.link(node.fd.number, name)?;
        let (named, stat) = self.enter(self.disk.open(name)?)?;
        if stat.st_nlink > 0 {
            self.table.name_given(known.id, &node);
        }
        Ok(named)
    }

    /// Looks up, uses and forgets, so that other descriptors are thrown out.
    fn visit(&self, name: &'static str) {
        if let Ok(known) = self.lookup(name) {
            self.must_reach(known);
            self.table.forget(known.id, 1);
        }
    }

    /// When the kernel has forgotten all.
    fn must_be_empty(&self) {
        assert_eq!(self.table.known(), (0, 0), "nodes and lookups left");
        assert_eq!(self.disk.open_descriptors(), 1, "open besides the root");
    }
}

/// Lookups of two files by several threads, forgotten several at a time, and a request
/// that comes when it likes.
fn counting(slots: usize) {
    let world = World::new(slots);
    let number = world.disk.create("a");
    world.disk.create("b");
    let id = world.table.id_of(number);
    let both = |world: &World| {
        let (a, b) = (world.lookup("a").unwrap(), world.lookup("b").unwrap());
        world.must_reach(a);
        world.table.forget(a.id, 1);
        world.must_reach(b);
        world.table.forget(b.id, 1);
    };
    let threads = [
        spawn(&world, |world| {
            let first = world.lookup("a").unwrap();
            world.must_reach(first);
            let second = world.lookup("a").unwrap();
            world.must_reach(second);
            world.table.forget(first.id, 2);
        }),
        spawn(&world, both),
        spawn(&world, both),
        spawn(&world, move |world| match world.table.get(id) {
            Ok(node) => world.check(&node),
            Err(error) => assert_eq!(error, Errno::STALE),
        }),
    ];
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    world.must_be_empty();
}

/// A file with two names loses both at once, one to unlink and one to rename, while
/// it is looked up by both and other files press for room.
fn removing() {
    let world = World::new(1);
    let number = world.disk.create("a");
    world.disk.link(number, "b").unwrap();
    world.disk.create("c");
    world.disk.create("d");
    let hold = |name| {
        move |world: &World| {
            if let Ok(known) = world.lookup(name) {
                world.must_reach(known);
                world.visit("d");
                world.must_reach(known);
                world.table.forget(known.id, 1);
            }
        }
    };
    let (hold_a, hold_b) = (hold("a"), hold("b"));
    let threads: Vec<_> = [
        spawn(&world, hold_a),
        spawn(&world, hold_b),
        spawn(&world, |world| world.unlink("a")),
        spawn(&world, |world| world.rename("c", "b")),
    ]
    .into();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    world.must_be_empty();
}

fn spawn(world: &Arc<World>, part: impl FnOnce(&World) + Send + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || part(&world))
}

/// A file that is known from the start loses its last name, and is held to the end.
fn holding() {
    let world = World::new(1);
    world.disk.create("a");
    world.disk.create("b");
    let known = world.lookup("a").unwrap();
    let threads = [
        spawn(&world, |world| world.unlink("a")),
        spawn(&world, |world| world.visit("b")),
        spawn(&world, move |world| world.must_reach(known)),
    ];
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    world.visit("b");
    world.must_reach(known);
    world.table.forget(known.id, 1);
    assert_eq!(world.request(known), Err(Errno::STALE));
    world.unlink("b");
    world.must_be_empty();
    assert_eq!(
        world.disk.call().inodes.len(),
        1,
        "inodes that nobody freed"
    );
}

/// A file without a name is given two, which are taken away again.
fn naming() {
    let world = World::new(1);
    world.disk.create("b");
    let (known, stat) = world.enter(world.disk.open_unnamed()).unwrap();
    assert_eq!(stat.st_nlink, 0);
    let link = move |name| {
        move |world: &World| match world.link(known, name) {
            Ok(named) => {
                world.visit("b");
                world.must_reach(named);
                world.table.forget(named.id, 1);
            }
            // The other name came and went before this one.
            Err(error) => assert_eq!(error, Errno::NOENT),
        }
    };
    let threads = [
        spawn(&world, link("n")),
        spawn(&world, link("m")),
        spawn(&world, |world| world.unlink("n")),
        spawn(&world, |world| world.unlink("m")),
    ];
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    world.visit("b");
    world.must_reach(known);
    world.table.forget(known.id, 1);
    world.must_be_empty();
}

/// Behind the mount's back a known file is removed and another gets its number.
fn recycling() {
    let world = World::new(1);
    world.disk.create("a");
    world.disk.create("b");
    let old = world.lookup("a").unwrap();
    let threads = [
        spawn(&world, move |world| {
            for _ in 0..2 {
                match world.request(old) {
                    Ok(_) | Err(Errno::STALE) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }),
        spawn(&world, |world| {
            world.disk.unlink("a").unwrap();
            world.disk.create("a");
            let new = world.lookup("a").unwrap();
            world.must_reach(new);
            world.visit("b");
            world.must_reach(new);
            world.table.forget(new.id, 1);
        }),
        spawn(&world, |world| world.visit("b")),
        // What it finds may be gone at once, but must not take the successor's place.
        spawn(&world, |world| {
            if let Ok(known) = world.lookup("a") {
                world.table.forget(known.id, 1);
            }
        }),
    ];
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    world.table.forget(old.id, 1);
    world.must_be_empty();
}

/// A file is removed, and another gets its number and its name, while the name is looked
/// up: each lookup is of the one or of the other.
fn replacing() {
    let world = World::new(1);
    world.disk.create("a");
    world.disk.create("b");
    let hold = |world: &World| {
        if let Ok(known) = world.lookup("a") {
            world.must_reach(known);
            world.visit("b");
            world.must_reach(known);
            world.table.forget(known.id, 1);
        }
    };
    let threads = [
        spawn(&world, hold),
        spawn(&world, move |world| {
            world.unlink("a");
            world.disk.create("a");
            hold(world);
        }),
    ];
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    world.must_be_empty();
}

#[test]
fn counts_are_exact_in_every_order() {
    explore(|| counting(1));
    explore(|| counting(2));
}

#[test]
fn a_removed_inode_is_lost_to_nobody_in_any_order() {
    explore(removing);
}

#[test]
fn a_removed_inode_is_held_until_it_is_forgotten_in_every_order() {
    explore(holding);
}

#[test]
fn an_inode_that_gets_a_name_is_unpinned_in_every_order() {
    explore(naming);
}

#[test]
fn a_successor_by_number_is_another_file_in_every_order() {
    explore(recycling);
}

#[test]
fn a_name_leads_to_one_file_or_to_the_next_in_every_order() {
    explore(replacing);
}

#[cfg(feature = "mutants")]
#[test]
fn miscounted_forgets_are_caught() {
    must_catch(Mutant::ForgetMiscounted, || counting(1));
}

#[cfg(feature = "mutants")]
#[test]
fn stale_generations_are_caught() {
    must_catch(Mutant::StaleGeneration, recycling);
}
