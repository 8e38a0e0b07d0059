//! Operations on directories that are open.
//!
//! Positions are the lower filesystem's own (`d_off`), so seekdir(3) works across
//! changes exactly as far as it does there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::sync::PoisonError;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, fdatasync, fsync, seek};

use super::{Entry, Passthrough};
use crate::handles::OpenDir;
use crate::mutant::{self, Mutant};
use crate::{Errno, HandleId, NodeId, Result};

/// How much is read from the lower directory at a time.
const BUFFER_BYTES: usize = 32 * 1024;

/// One name of a listing.
#[derive(Debug)]
pub struct Listed {
    /// The name.
    pub name: OsString,
    /// The inode number that the lower filesystem shows.
    pub ino: u64,
    /// The position after this name.
    pub next: u64,
    /// What it is, as far as the directory knows.
    pub kind: FileType,
}

impl Listed {
    /// Whether this is `.` or `..`.
    #[must_use]
    pub fn is_dot(&self) -> bool {
        matches!(self.name.as_bytes(), b"." | b"..")
    }
}

/// Names read ahead, and where the first of them begins.
#[derive(Debug, Default)]
pub(crate) struct DirStream {
    position: u64,
    ahead: VecDeque<Listed>,
    /// Whether the lower directory has said that it has no more.
    ended: bool,
}

impl DirStream {
    /// Makes `offset` the position of the next name.
    fn go_to(&mut self, dir: &OpenDir, offset: u64) -> Result<()> {
        // Who has seen the end and asks again wants to know what has come since, and so
        // does who begins (rewinddir(3)). But Btrfs stays at an end that it has reached,
        // and shows nothing that came after its directory was opened
        // (btrfs_real_readdir).
        if offset == 0 || offset != self.position || (self.ended && self.ahead.is_empty()) {
            self.ahead.clear();
            seek(dir, SeekFrom::Start(offset))?;
            self.position = offset;
            self.ended = false;
        }
        Ok(())
    }

    fn fill(&mut self, dir: &OpenDir) -> Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut raw = RawDir::new(dir, &mut buffer);
        while let Some(entry) = raw.next() {
            let entry = entry?;
            self.ahead.push_back(Listed {
                name: OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(),
                ino: entry.ino(),
                next: entry.next_entry_cookie(),
                kind: entry.file_type(),
            });
            if raw.is_buffer_empty() {
                break;
            }
        }
        self.ended = self.ahead.is_empty();
        Ok(())
    }
}

impl Passthrough {
    /// opendir(3).
    ///
    /// # Errors
    /// Those of open(2); ENOTDIR for anything else, which is not opened.
    pub fn opendir(&self, node: NodeId) -> Result<HandleId> {
        if self.nodes.kind(node)? != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let fd = self.nodes.open(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.handles.enter_dir(OpenDir::new(fd))
    }

    /// Hands the names from position `offset` on to `take` until that says it has no
    /// room (`false`); the name it refused comes again. `flags` are the open directory's
    /// by now: `O_NOATIME` counts.
    ///
    /// # Errors
    /// Those of getdents64(2), when nothing was taken before.
    pub fn readdir(
        &self,
        handle: HandleId,
        flags: i32,
        offset: u64,
        mut take: impl FnMut(&Listed) -> bool,
    ) -> Result<()> {
        let dir = self.handles.dir(handle)?;
        dir.follow(flags)?;
        // The lock is this open directory's own: two listings of one descriptor have
        // to take turns, nobody else waits.
        let mut stream = dir.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.go_to(&dir, offset)?;
        let mut taken = false;
        loop {
            if stream.ahead.is_empty() {
                match stream.fill(&dir) {
                    Err(_) if taken => return Ok(()),
                    filled => filled?,
                }
            }
            let Some(listed) = stream.ahead.front() else {
                return Ok(());
            };
            if !take(listed) {
                return Ok(());
            }
            taken = true;
            stream.position = listed.next;
            stream.ahead.pop_front();
        }
    }

    /// Like [`Passthrough::readdir`], with each name looked up. A name without an
    /// entry is `.` or `..`, which are never counted, or one that exists and cannot be
    /// looked up: it is listed all the same, and who uses it is told why. Names that are
    /// gone by now are left out.
    ///
    /// # Errors
    /// Those of getdents64(2).
    pub fn readdirplus(
        &self,
        node: NodeId,
        handle: HandleId,
        flags: i32,
        offset: u64,
        mut take: impl FnMut(&Listed, Option<&Entry>) -> bool,
    ) -> Result<()> {
        let parent = self.nodes.get(node)?;
        self.readdir(handle, flags, offset, |listed| {
            if listed.is_dot() {
                return take(listed, None);
            }
            let entry = match self.lookup_in(&parent, &listed.name) {
                Ok(entry) => entry,
                Err(Errno::NOENT) => return true,
                Err(error) => {
                    tracing::debug!(name = ?listed.name, %error, "listed without its attributes");
                    return take(listed, None);
                }
            };
            let taken = take(listed, Some(&entry));
            if !taken {
                // It does not reach the kernel, so the kernel will not forget it.
                self.nodes.forget(entry.node, 1);
            }
            taken
        })
    }

    /// fsync(2) of a directory, or fdatasync(2) with `data_only`.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, handle: HandleId, data_only: bool) -> Result<()> {
        let dir = self.handles.dir(handle)?;
        if mutant::active(Mutant::FsyncdirIgnored) {
            return Ok(());
        }
        if data_only {
            fdatasync(&*dir)
        } else {
            fsync(&*dir)
        }
    }

    /// Forgets an open directory.
    pub fn releasedir(&self, handle: HandleId) {
        self.handles.release_dir(handle);
    }
}
