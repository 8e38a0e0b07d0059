//! Locks between processes: one file, one holder; and slots, N files of which
//! any will do.
//!
//! The locks are flock(2)'s: the kernel releases them when their holder dies,
//! however it dies, so there is nothing to clean up. A lock file is never
//! removed, or two processes could each hold a file of the same name.
//!
//! A wait has a deadline, which a blocking flock(2) has not. So a waiter tries,
//! then watches the file with inotify(7) for "closed after being open for
//! writing", which is what a holder's release or death looks like, and tries
//! again. A death's event may come an instant *before* the kernel drops the
//! lock; a slow tick covers that, and file systems without events.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock, inotify};
use rustix::io::Errno;

/// How long a waiter sleeps at most before it tries again unasked.
const TICK: Duration = Duration::from_millis(100);

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else kept it until the deadline.
    #[error("waited {deadline:?} for the lock {}, held by {holder}", path.display())]
    Held {
        /// The lock file, or the directory of the slots.
        path: PathBuf,
        /// The time that was allowed.
        deadline: Duration,
        /// What the holder wrote into the file.
        holder: String,
    },
    /// The file cannot be made, opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What failed.
        source: io::Error,
    },
}

/// A held lock; released on drop.
#[derive(Debug)]
pub struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Takes `path` for this holder alone, making the file if it is missing,
    /// and writes the own pid into it for those who wait.
    ///
    /// # Errors
    /// [`LockError::Held`] after `deadline`; `Io` when the file is unusable.
    pub fn exclusive(path: &Path, deadline: Duration) -> Result<FileLock, LockError> {
        wait_for(path, path, deadline, || FileLock::try_exclusive(path))
    }

    /// Takes `path` together with other sharers.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn shared(path: &Path, deadline: Duration) -> Result<FileLock, LockError> {
        wait_for(path, path, deadline, || {
            FileLock::attempt(path, FlockOperation::NonBlockingLockShared)
        })
    }

    /// Takes `path` for this holder alone if it is free now.
    ///
    /// # Errors
    /// When the file is unusable.
    pub fn try_exclusive(path: &Path) -> Result<Option<FileLock>, LockError> {
        let Some(mut lock) = FileLock::attempt(path, FlockOperation::NonBlockingLockExclusive)?
        else {
            return Ok(None);
        };
        let pid = std::process::id();
        let noted = lock.file.set_len(0).and_then(|()| lock.file.rewind());
        let noted = noted.and_then(|()| lock.file.write_all(format!("pid {pid}\n").as_bytes()));
        // The note is for people. The lock is held whether or not it is there
        // (a full disk must not keep anybody from locking).
        if let Err(error) = noted {
            tracing::debug!(%error, path = %path.display(), "no note in the lock file");
        }
        Ok(Some(lock))
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn attempt(path: &Path, operation: FlockOperation) -> Result<Option<FileLock>, LockError> {
        // For writing even when shared: inotify tells only writers' closes.
        let file = open(path).map_err(|source| LockError::Io {
            path: path.to_owned(),
            source,
        })?;
        match retry_interrupted(|| flock(&file, operation)) {
            Ok(()) => Ok(Some(FileLock {
                file,
                path: path.to_owned(),
            })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(LockError::Io {
                path: path.to_owned(),
                source: errno.into(),
            }),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Unlocked before it is closed, so that the event of the close finds
        // the lock free. If this fails the close does it.
        let _ = flock(&self.file, FlockOperation::NonBlockingUnlock);
    }
}

/// N places shared by all processes that name the same directory.
#[derive(Debug, Clone)]
pub struct Slots {
    dir: PathBuf,
    count: usize,
}

/// A held place; given back on drop.
#[derive(Debug)]
pub struct Slot {
    /// Which one, from 0.
    pub index: usize,
    _lock: FileLock,
}

impl Slots {
    /// `count` places, the files `slot-0` to `slot-(count - 1)` in `dir`, which
    /// is made if it is missing. At least one.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(dir: &Path, count: usize) -> Result<Slots, LockError> {
        let io_error = |source| LockError::Io {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(io_error)?;
        Ok(Slots {
            dir: dir.to_owned(),
            count: count.max(1),
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes any free place.
    ///
    /// # Errors
    /// [`LockError::Held`] when none came free within `deadline`.
    pub fn acquire(&self, deadline: Duration) -> Result<Slot, LockError> {
        wait_for(&self.dir, &self.path(0), deadline, || self.try_acquire())
    }

    /// Takes a place if one is free now.
    ///
    /// # Errors
    /// When a slot's file is unusable.
    pub fn try_acquire(&self) -> Result<Option<Slot>, LockError> {
        for index in 0..self.count {
            if let Some(lock) = FileLock::try_exclusive(&self.path(index))? {
                return Ok(Some(Slot { index, _lock: lock }));
            }
        }
        Ok(None)
    }

    fn path(&self, index: usize) -> PathBuf {
        self.dir.join(format!("slot-{index}"))
    }
}

/// Calls `attempt` until it succeeds, between calls waiting for a close in
/// `watched`; `noted` is the file that names a holder for the message.
fn wait_for<T>(
    watched: &Path,
    noted: &Path,
    deadline: Duration,
    mut attempt: impl FnMut() -> Result<Option<T>, LockError>,
) -> Result<T, LockError> {
    if let Some(got) = attempt()? {
        return Ok(got);
    }
    let until = Instant::now() + deadline;
    let io_error = |errno: Errno| LockError::Io {
        path: watched.to_owned(),
        source: errno.into(),
    };
    tracing::debug!(lock = %watched.display(), holder = %holder(noted), "waiting for a lock");
    let events = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(io_error)?;
    inotify::add_watch(&events, watched, inotify::WatchFlags::CLOSE_WRITE).map_err(io_error)?;
    loop {
        // Watching comes before trying: a release in between is not missed.
        forget_events(&events);
        if let Some(got) = attempt()? {
            return Ok(got);
        }
        // Our own failed attempt opened and closed the file too.
        forget_events(&events);
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LockError::Held {
                path: watched.to_owned(),
                deadline,
                holder: holder(noted),
            });
        }
        wait_event(&events, left.min(TICK)).map_err(io_error)?;
    }
}

fn wait_event(events: &OwnedFd, timeout: Duration) -> Result<(), Errno> {
    let timeout = Timespec::try_from(timeout).map_err(|_overflow| Errno::INVAL)?;
    match poll(&mut [PollFd::new(events, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Empties the queue. What went wrong with it costs a tick, not a lock.
fn forget_events(events: &OwnedFd) {
    let mut buffer = [0_u8; 4096];
    while rustix::io::read(events, &mut buffer).is_ok_and(|count| count > 0) {}
}

/// What the holder of `path` wrote about itself.
fn holder(path: &Path) -> String {
    let mut note = String::new();
    let read = File::open(path).and_then(|file| file.take(200).read_to_string(&mut note));
    match read {
        Ok(_) if !note.trim().is_empty() => note.trim().to_owned(),
        _ => "an unknown process".to_owned(),
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn retry_interrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Exclusion is tried with a second open file, which for flock(2) is the
    //! same as a second process, and once with real processes.

    use std::sync::mpsc;

    use super::*;
    use crate::process::Cmd;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(250);

    #[test]
    fn exclusive_excludes_and_says_who_holds() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/on/demand/lock");
        let held = FileLock::exclusive(&path, LONG).unwrap();
        let error = FileLock::exclusive(&path, SHORT).unwrap_err();
        let pid = std::process::id();
        assert_eq!(
            error.to_string(),
            format!(
                "waited 250ms for the lock {}, held by pid {pid}",
                path.display()
            )
        );
        assert!(FileLock::shared(&path, SHORT).is_err());
        drop(held);
        let first = FileLock::shared(&path, SHORT).unwrap();
        let second = FileLock::shared(&path, SHORT).unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop((first, second));
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
    }

    #[test]
    fn a_waiter_gets_the_lock_when_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::exclusive(&path, LONG).unwrap();
        let (tell, told) = mpsc::channel();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || {
                tell.send(()).unwrap();
                FileLock::exclusive(&path, LONG).map(drop)
            }
        });
        told.recv().unwrap();
        drop(held);
        waiter.join().unwrap().unwrap();
    }

    /// Runs only as a child of the next test: holds a slot until it is killed.
    #[test]
    fn helper_that_holds_a_slot() {
        let Some(dir) = std::env::var_os("PLUGPULL_TEST_SLOTS") else {
            return;
        };
        let slot = Slots::new(Path::new(&dir), 2)
            .unwrap()
            .acquire(LONG)
            .unwrap();
        fs::write(Path::new(&dir).join(format!("held-{}", slot.index)), "").unwrap();
        Cmd::new("sleep")
            .arg("1000")
            .run(Duration::from_secs(1000))
            .unwrap();
    }

    #[test]
    fn slots_exclude_across_processes_and_come_back_when_one_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots::new(dir.path(), 2).unwrap();
        let hold = || {
            Cmd::new(std::env::current_exe().unwrap())
                .args(["--exact", "lock::tests::helper_that_holds_a_slot"])
                .env("PLUGPULL_TEST_SLOTS", dir.path())
                .spawn()
                .unwrap()
        };
        let (mut one, two) = (hold(), hold());
        let until = Instant::now() + LONG;
        while !(dir.path().join("held-0").exists() && dir.path().join("held-1").exists()) {
            assert!(
                Instant::now() < until,
                "the helpers did not take both slots"
            );
            std::thread::yield_now();
        }
        let error = slots.acquire(SHORT).unwrap_err();
        assert!(matches!(error, LockError::Held { .. }), "{error}");
        assert!(error.to_string().contains("held by pid "), "{error}");
        one.kill().unwrap();
        let slot = slots.acquire(LONG).unwrap();
        assert!(
            slots.try_acquire().unwrap().is_none(),
            "the other is still held"
        );
        drop(two);
        let other = slots.acquire(LONG).unwrap();
        assert_ne!(slot.index, other.index);
    }
}
