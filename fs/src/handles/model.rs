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
use crate::Errno;
#[cfg(feature = "mutants")]
use crate::mutant::Mutant;
use crate::sync::explore;
#[cfg(feature = "mutants")]
use crate::sync::must_catch;

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
        let id = self.table.enter_file(file).unwrap();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = seen.insert(id);
        drop(seen);
        assert!(is_new, "{id:?} came twice");
        id
    }

    /// A READ: twice, because requests take their time.
    fn read(&self, id: HandleId) -> Result<u64, Errno> {
        let file = self.table.file(id)?;
        for _ in 0..2 {
            let content = self.descriptors.read(file.number);
            assert_eq!(
                content,
                Some(file.content),
                "a closed or foreign descriptor"
            );
        }
        Ok(file.content)
    }
}

fn world() -> Arc<World> {
    Arc::new(World {
        descriptors: Arc::default(),
        table: HandleTable::new(),
        seen: Mutex::default(),
    })
}

/// Two threads open, read and close files of their own; a third reads and a fourth
/// closes one that was open before, the latter as often as a resend may.
fn opening_and_releasing() {
    let world = world();
    let shared = world.open(100);
    let mut threads = Vec::new();
    for content in 0..2 {
        let world = Arc::clone(&world);
        threads.push(thread::spawn(move || {
            for round in 0..2 {
                let id = world.open(10 * content + round);
                assert_eq!(
                    world.read(id),
                    Ok(10 * content + round),
                    "an entry was lost"
                );
                world.table.release_file(id);
                assert_eq!(world.read(id), Err(Errno::BADF));
            }
        }));
    }
    let reader = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        for _ in 0..2 {
            let read = reader.read(shared);
            assert!(matches!(read, Ok(100) | Err(Errno::BADF)), "{read:?}");
        }
    }));
    for _ in 0..2 {
        let releaser = Arc::clone(&world);
        threads.push(thread::spawn(move || {
            releaser.table.release_file(shared);
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
