//! The handle table under every order of threads that shuttle thinks of.
//!
//! Simulated are descriptors: numbers that are given away again, lowest first, as soon
//! as they are closed. What must hold: a request that has found an open file uses a
//! descriptor that is open and that file's own; nothing is closed twice; a handle does
//! not come twice; and in the end everything is closed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::thread;

use super::{HandleId, HandleTable, Opened};
#[cfg(feature = "mutants")]
use crate::mutant::Mutant;
use crate::sync::explore;
#[cfg(feature = "mutants")]
use crate::sync::must_catch;
use crate::{Errno, NodeId};

/// A process's descriptors: which file each number stands for.
#[derive(Default)]
struct Descriptors {
    /// Looked at by nobody; an atomic operation is where shuttle may switch threads.
    steps: AtomicU64,
    open: Mutex<BTreeMap<u64, u64>>,
}

impl Descriptors {
    fn open(self: &Arc<Self>, content: u64) -> File {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (3..).find(|number| !open.contains_key(number)).unwrap();
        open.insert(number, content);
        drop(open);
        File {
            descriptors: Arc::clone(self),
            number,
            content,
        }
    }

    fn read(&self, number: u64) -> Option<u64> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&number).copied()
    }

    fn close(&self, number: u64) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let was_open = open.remove(&number);
        drop(open);
        assert!(was_open.is_some(), "descriptor {number} is closed twice");
    }
}

/// An open file, in the end dropped and thereby closed.
struct File {
    descriptors: Arc<Descriptors>,
    number: u64,
    content: u64,
}

impl Drop for File {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.descriptors.close(self.number);
        }
    }
}

impl Opened for File {
    #[cfg(feature = "mutants")]
    fn number(&self) -> u64 {
        self.number
    }

    #[cfg(feature = "mutants")]
    fn close_number(&self) {
        self.descriptors.close(self.number);
    }
}

struct World {
    descriptors: Arc<Descriptors>,
    table: HandleTable<File>,
    seen: Mutex<HashSet<HandleId>>,
}

impl World {
    fn open(&self, content: u64) -> HandleId {
        let file = self.descriptors.open(content);
        let id = self.table.enter_file(node_of(content), file).unwrap();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = seen.insert(id);
        drop(seen);
        assert!(is_new, "{id:?} came twice");
        id
    }

    /// A READ.
    fn read(&self, id: HandleId) -> Result<u64, Errno> {
        Ok(self.content(&*self.table.file(id)?))
    }

    /// A GETXATTR, if there is an open file to ask.
    fn ask(&self, node: NodeId) -> Option<u64> {
        Some(self.content(&*self.table.file_of(node)?))
    }

    /// What a descriptor stands for: twice, because requests take their time.
    fn content(&self, file: &File) -> u64 {
        for _ in 0..2 {
            let content = self.descriptors.read(file.number);
            assert_eq!(
                content,
                Some(file.content),
                "a closed or foreign descriptor"
            );
        }
        file.content
    }
}

/// What the file holds that is open all the time.
const SHARED: u64 = 100;

/// Which inode has this content: ten files in a row are the same inode's.
fn node_of(content: u64) -> NodeId {
    NodeId::from(content / 10)
}

fn world() -> Arc<World> {
    Arc::new(World {
        descriptors: Arc::default(),
        table: HandleTable::new(),
        seen: Mutex::default(),
    })
}

/// Two threads open, read and close files of their own, each those of one inode; a third
/// reads and a fourth closes one that was open before, the latter as often as a resend
/// may. A fifth asks inodes, whatever is open of them.
fn opening_and_releasing() {
    let world = world();
    let shared = world.open(SHARED);
    let mut threads = Vec::new();
    for thread in 0..2 {
        let world = Arc::clone(&world);
        threads.push(thread::spawn(move || {
            for round in 0..2 {
                let content = 10 * thread + round;
                let id = world.open(content);
                assert_eq!(world.read(id), Ok(content), "an entry was lost");
                let asked = world.ask(node_of(content));
                assert!(asked.is_none_or(|found| found == content), "{asked:?}");
                world.table.release_file(node_of(content), id);
                assert_eq!(world.read(id), Err(Errno::BADF));
            }
        }));
    }
    let reader = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        for _ in 0..2 {
            let read = reader.read(shared);
            assert!(matches!(read, Ok(SHARED) | Err(Errno::BADF)), "{read:?}");
        }
    }));
    let asker = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        for node in [0, 10, 1] {
            let asked = asker.ask(NodeId::from(node));
            let foreign = asked.is_some_and(|content| content / 10 != node);
            assert!(!foreign, "{asked:?} is no file of inode {node}");
        }
    }));
    for _ in 0..2 {
        let releaser = Arc::clone(&world);
        threads.push(thread::spawn(move || {
            releaser.table.release_file(node_of(SHARED), shared);
        }));
    }
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let open = world.descriptors.open.lock().unwrap().len();
    assert_eq!(open, 0, "descriptors are still open");
}

#[test]
fn open_files_are_right_in_every_order() {
    explore(opening_and_releasing);
}

#[cfg(feature = "mutants")]
#[test]
fn closing_before_removing_is_caught() {
    must_catch(Mutant::CloseBeforeRemove, opening_and_releasing);
}

#[cfg(feature = "mutants")]
#[test]
fn descriptors_as_handles_are_caught() {
    must_catch(Mutant::FdAsHandleBare, opening_and_releasing);
}
