//! The handle table: which open file the kernel means by a number.
//!
//! A handle is a number from a counter that never repeats, never a descriptor: the
//! kernel gives a closed descriptor's number away at once, RELEASE comes after close()
//! has returned, and nothing orders it against the next OPEN. RELEASE removes the
//! entry *before* the descriptor closes; the descriptor closes when the last request
//! that uses it is done. A number that is not in the table is EBADF, except to
//! RELEASE, which may come twice after a restart.
//!
//! Of each inode that is open one open file can be asked for as well: what a request has
//! to find out about such an inode its descriptor tells, and none need be opened.
//!
//! The locks never leave this file. They are held to look up or to change a map,
//! never across a system call.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

#[cfg(feature = "mutants")]
use crate::mutant::{Mutant, active};
use crate::passthrough::DirStream;
use crate::sync::{AtomicU64, RwLock};
use crate::{Errno, NodeId, Result};

const SHARDS: u64 = 64;

/// The number by which the kernel names an open file or directory: 63 bits, never
/// used twice in the life of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HandleId(u64);

impl From<HandleId> for u64 {
    fn from(id: HandleId) -> Self {
        id.0
    }
}

impl From<u64> for HandleId {
    fn from(number: u64) -> Self {
        HandleId(number)
    }
}

/// One FUSE open of a regular file, with a descriptor of its own.
#[derive(Debug)]
pub(crate) struct OpenFile {
    fd: OwnedFd,
    /// Whether the kernel's page cache stands before the server.
    pub(crate) is_cached: bool,
    appends: bool,
    /// Those of [`FOLLOWED`] that the descriptor has.
    flags: AtomicI32,
}

/// Flags of an open file that fcntl(2) can change and that the lower file must have.
const FOLLOWED: i32 = libc::O_DIRECT | libc::O_NOATIME;

impl OpenFile {
    /// A descriptor that was opened with `flags`.
    pub(crate) fn new(fd: OwnedFd, flags: i32) -> Self {
        OpenFile {
            fd,
            is_cached: false,
            appends: flags & libc::O_APPEND != 0,
            flags: AtomicI32::new(flags & FOLLOWED),
        }
    }

    /// The descriptor.
    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }

    /// Whether it was opened with `O_APPEND`, of which the descriptor knows nothing.
    pub(crate) fn appends(&self) -> bool {
        self.appends
    }

    /// Gives the descriptor the `O_DIRECT` and `O_NOATIME` of `flags`, the open file's
    /// own by now. Between two requests that disagree either may win, as between two
    /// threads that call fcntl(2) and write(2) on one open file.
    pub(crate) fn follow(&self, flags: i32) -> Result<()> {
        follow(&self.fd, &self.flags, flags & FOLLOWED)
    }
}

/// Gives a descriptor these of [`FOLLOWED`], unless it has them as far as is known.
fn follow(fd: &OwnedFd, known: &AtomicI32, wanted: i32) -> Result<()> {
    if known.load(Ordering::Relaxed) != wanted {
        let rest = fcntl_getfl(fd)? - OFlags::from_bits_retain(FOLLOWED.cast_unsigned());
        let wanted_flags = OFlags::from_bits_retain(wanted.cast_unsigned());
        fcntl_setfl(fd, rest | wanted_flags)?;
        known.store(wanted, Ordering::Relaxed);
    }
    Ok(())
}

/// What the deliberate faults must know of an open file; nothing, in an honest build.
pub(crate) trait Opened {
    /// The number of its descriptor.
    #[cfg(feature = "mutants")]
    fn number(&self) -> u64;

    /// Closes the descriptor of this number, whoever still uses it.
    #[cfg(feature = "mutants")]
    fn close_number(&self);
}

impl Opened for OpenFile {
    #[cfg(feature = "mutants")]
    fn number(&self) -> u64 {
        use std::os::fd::AsRawFd;
        self.fd.as_raw_fd().unsigned_abs().into()
    }

    #[cfg(feature = "mutants")]
    fn close_number(&self) {
        use std::os::fd::AsRawFd;
        // Its error is the mutant's own affair: it may have lost the descriptor already.
        let _closed = crate::sys::close_number(self.fd.as_raw_fd());
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One FUSE open of a directory.
#[derive(Debug)]
pub(crate) struct OpenDir {
    fd: OwnedFd,
    /// Those of [`FOLLOWED`] that the descriptor has.
    flags: AtomicI32,
    /// The position is state of the descriptor, so its users take turns.
    pub(crate) stream: std::sync::Mutex<DirStream>,
}

impl OpenDir {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        OpenDir {
            fd,
            flags: AtomicI32::new(0),
            stream: std::sync::Mutex::default(),
        }
    }

    /// Gives the descriptor the `O_NOATIME` of `flags`, the open directory's own by now.
    pub(crate) fn follow(&self, flags: i32) -> Result<()> {
        follow(&self.fd, &self.flags, flags & libc::O_NOATIME)
    }
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// All open files and directories of a mount.
#[derive(Debug)]
pub(crate) struct HandleTable<F = OpenFile> {
    next: AtomicU64,
    files: Shards<F>,
    dirs: Shards<OpenDir>,
    /// For an inode the open file of it that came last. Only a hint: where that one has
    /// been released others may still be open.
    of_nodes: Vec<RwLock<HashMap<NodeId, HandleId>>>,
}

impl<F: Opened> HandleTable<F> {
    pub(crate) fn new() -> Self {
        HandleTable {
            next: AtomicU64::new(1),
            files: Shards::new(),
            dirs: Shards::new(),
            of_nodes: (0..SHARDS).map(|_| RwLock::new(HashMap::new())).collect(),
        }
    }

    /// Enters an open file of an inode and returns its number.
    pub(crate) fn enter_file(&self, node: NodeId, file: F) -> Result<HandleId> {
        #[cfg(feature = "mutants")]
        if founding_bug::active() {
            return Ok(founding_bug::enter(&self.files, file));
        }
        let id = self.next_number()?;
        let _none = self.files.insert(id, file);
        let mut map = self
            .of_node(node)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        map.insert(node, id);
        drop(map);
        Ok(id)
    }

    /// Enters an open directory and returns its number.
    pub(crate) fn enter_dir(&self, dir: OpenDir) -> Result<HandleId> {
        let id = self.next_number()?;
        let _none = self.dirs.insert(id, dir);
        Ok(id)
    }

    /// The open file of this number, or EBADF.
    pub(crate) fn file(&self, id: HandleId) -> Result<Arc<F>> {
        self.files.get(id)
    }

    /// An open file of this inode. While it is open no other inode has its number.
    pub(crate) fn file_of(&self, node: NodeId) -> Option<Arc<F>> {
        let map = self
            .of_node(node)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let id = map.get(&node).copied();
        drop(map);
        self.files.get(id?).ok()
    }

    fn of_node(&self, node: NodeId) -> &RwLock<HashMap<NodeId, HandleId>> {
        &self.of_nodes[(node.number() % SHARDS) as usize]
    }

    /// The number that was given last.
    pub(crate) fn newest(&self) -> HandleId {
        HandleId(self.next.load(Ordering::Relaxed).saturating_sub(1))
    }

    /// The open directory of this number, or EBADF.
    pub(crate) fn dir(&self, id: HandleId) -> Result<Arc<OpenDir>> {
        self.dirs.get(id)
    }

    /// Forgets an open file of an inode and returns whether there was one.
    pub(crate) fn release_file(&self, node: NodeId, id: HandleId) -> bool {
        #[cfg(feature = "mutants")]
        if founding_bug::active() {
            founding_bug::release(&self.files, id);
            return true;
        }
        #[cfg(feature = "mutants")]
        if active(Mutant::CloseBeforeRemove) {
            let Ok(open) = self.files.get(id) else {
                return false;
            };
            open.close_number();
            // Not a second time, when the last user lets go.
            std::mem::forget((open, self.files.remove(id)));
            return true;
        }
        let mut map = self
            .of_node(node)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if map.get(&node) == Some(&id) {
            map.remove(&node);
        }
        drop(map);
        self.files.release(id)
    }

    /// Forgets an open directory; an unknown number is no error.
    pub(crate) fn release_dir(&self, id: HandleId) {
        self.dirs.release(id);
    }

    fn next_number(&self) -> Result<HandleId> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Out of reach at a billion opens a second for two centuries; still, the
        // promise is that a number does not come twice.
        if number > i64::MAX.unsigned_abs() {
            return Err(Errno::NFILE);
        }
        Ok(HandleId(number))
    }
}

type Map<T> = HashMap<HandleId, Arc<T>>;

/// Maps under several locks, so that threads seldom meet.
#[derive(Debug)]
struct Shards<T> {
    shards: Vec<RwLock<Map<T>>>,
}

impl<T> Shards<T> {
    fn new() -> Self {
        Shards {
            shards: (0..SHARDS).map(|_| RwLock::new(HashMap::new())).collect(),
        }
    }

    fn shard(&self, id: HandleId) -> &RwLock<Map<T>> {
        &self.shards[(id.0 % SHARDS) as usize]
    }

    fn get(&self, id: HandleId) -> Result<Arc<T>> {
        let map = self
            .shard(id)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        map.get(&id).cloned().ok_or(Errno::BADF)
    }

    fn insert(&self, id: HandleId, open: T) -> Option<Arc<T>> {
        let mut map = self
            .shard(id)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        map.insert(id, Arc::new(open))
    }

    fn release(&self, id: HandleId) -> bool {
        // The entry goes first and the lock with it; the descriptor closes after
        // that, and not before the last request on it is done.
        self.remove(id).is_some()
    }

    fn remove(&self, id: HandleId) -> Option<Arc<T>> {
        let mut map = self
            .shard(id)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        map.remove(&id)
    }
}

/// The mutants `fd-as-handle`: the descriptor's number is the handle, RELEASE closes
/// and *then* removes.
#[cfg(feature = "mutants")]
mod founding_bug {
    use std::time::{Duration, Instant};

    use super::{HandleId, Opened, Shards};
    use crate::mutant::{Mutant, active as mutant_active};

    /// How long the window between close and remove is held open.
    const WINDOW: Duration = Duration::from_millis(2);

    pub(super) fn active() -> bool {
        mutant_active(Mutant::FdAsHandle) || mutant_active(Mutant::FdAsHandleBare)
    }

    pub(super) fn enter<F: Opened>(files: &Shards<F>, file: F) -> HandleId {
        let id = HandleId(file.number());
        // What is replaced here was closed by number already; to drop it would close
        // the new file's descriptor, which is a different bug.
        std::mem::forget(files.insert(id, file));
        id
    }

    pub(super) fn release<F: Opened>(files: &Shards<F>, id: HandleId) {
        let Ok(open) = files.get(id) else { return };
        open.close_number();
        std::mem::forget(open);
        // From here on another thread may be given the same number by the kernel.
        if mutant_active(Mutant::FdAsHandle) {
            let end = Instant::now() + WINDOW;
            while Instant::now() < end {
                std::thread::yield_now();
            }
        }
        // This removes that other file's entry.
        std::mem::forget(files.remove(id));
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod model;

// Not with shuttle's locks, which work in models alone.
#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn open_null() -> OpenFile {
        OpenFile::new(std::fs::File::open("/dev/null").unwrap().into(), 0)
    }

    #[test]
    fn numbers_never_repeat_though_descriptors_do() {
        let table = HandleTable::new();
        let mut seen = HashSet::new();
        for _ in 0..1000 {
            let id = table.enter_file(NodeId::ROOT, open_null()).unwrap();
            assert!(seen.insert(id), "{id:?} came twice");
            table.release_file(NodeId::ROOT, id);
        }
        let dir = OpenDir::new(std::fs::File::open("/").unwrap().into());
        assert!(seen.insert(table.enter_dir(dir).unwrap()));
    }

    #[test]
    fn an_entry_lives_until_release_and_a_user_longer() {
        let table = HandleTable::new();
        let id = table.enter_file(NodeId::ROOT, open_null()).unwrap();
        let in_use = table.file(id).unwrap();
        assert!(Arc::ptr_eq(&in_use, &table.file_of(NodeId::ROOT).unwrap()));
        assert!(table.release_file(NodeId::ROOT, id));
        assert_eq!(table.file(id).unwrap_err(), Errno::BADF);
        assert!(table.file_of(NodeId::ROOT).is_none());
        // A second RELEASE, as after a resend, is harmless.
        assert!(!table.release_file(NodeId::ROOT, id));
        rustix::fs::fstat(&*in_use).unwrap();
        assert_eq!(table.dir(id).unwrap_err(), Errno::BADF);
    }

    #[test]
    fn threads_that_open_and_release_lose_no_entry() {
        let table = HandleTable::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let id = table.enter_file(NodeId::ROOT, open_null()).unwrap();
                        table.file(id).expect("an entry was lost");
                        table.release_file(NodeId::ROOT, id);
                    }
                });
            }
        });
    }
}
