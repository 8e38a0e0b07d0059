//! Operations on regular files and their contents.

use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fdatasync, fsync, seek};
use rustix::io::{ReadWriteFlags, pread, pwritev2};

use super::{Passthrough, clearing_set_id};
use crate::handles::OpenFile;
use crate::mutant::{self, Mutant};
use crate::{Caller, Errno, HandleId, NodeId, Result, sys};

/// The most that one copy_file_range(2) copies: its answer is 32 bits wide, and
/// Linux itself stops at this.
const MAX_COPY: u64 = 0x7fff_f000;

/// How durable a write must be when it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteSync {
    /// In the lower filesystem's cache.
    No,
    /// Data and what is needed to read it back (`O_DSYNC`, `RWF_DSYNC`).
    Data,
    /// Data and all metadata (`O_SYNC`, `RWF_SYNC`).
    Full,
}

impl WriteSync {
    /// From the flags of one WRITE request: the kernel puts the open file's flags and
    /// the call's own RWF flags into them.
    #[must_use]
    pub fn from_request_flags(flags: i32) -> Self {
        // O_SYNC contains the bit of O_DSYNC.
        if flags & libc::O_SYNC == libc::O_SYNC {
            WriteSync::Full
        } else if flags & libc::O_DSYNC != 0 {
            WriteSync::Data
        } else {
            WriteSync::No
        }
    }

    fn rw_flags(self) -> ReadWriteFlags {
        match self {
            WriteSync::No => ReadWriteFlags::empty(),
            WriteSync::Data => ReadWriteFlags::DSYNC,
            WriteSync::Full => ReadWriteFlags::SYNC,
        }
    }
}

/// What a WRITE did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// How many bytes were written.
    pub count: usize,
    /// Whether the file had set-id bits that may be gone now.
    pub cleared_set_id: bool,
}

/// How a WRITE is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteHow {
    /// The open file's flags by now, and what the call's own RWF flags add: `O_SYNC`,
    /// `O_DSYNC` and `O_DIRECT` count.
    pub flags: i32,
    /// Who writes, if set-id bits must not survive that.
    pub clears_set_id: Option<Caller>,
}

impl Passthrough {
    /// Reads at `offset` until `buffer` is full or the file ends; returns how much.
    /// `flags` are the open file's by now: fcntl(2) may have changed `O_DIRECT` and `O_NOATIME`.
    ///
    /// # Errors
    /// Those of pread(2), when nothing was read before.
    pub fn read(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        buffer: &mut [u8],
        flags: i32,
    ) -> Result<usize> {
        let file = self.file(node, handle)?;
        file.follow(flags)?;
        let mut done = 0;
        while done < buffer.len() {
            match pread(&*file, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// Those of pwrite(2), when nothing was written before; after that the count is
    /// answered and the next write gets the error, as write(2) does it.
    pub fn write(
        &self,
        node: NodeId,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> Result<Written> {
        let file = self.file(node, handle)?;
        file.follow(how.flags)?;
        // Where the page cache is in use the kernel sends FSYNC after such a write
        // (generic_write_sync at the end of fuse_cache_write_iter): not twice.
        let sync = if file.is_cached || mutant::active(Mutant::DsyncDropped) {
            WriteSync::No
        } else {
            WriteSync::from_request_flags(how.flags)
        };
        let (count, cleared_set_id) = clearing_set_id(how.clears_set_id, &*file, || {
            write_all(file.as_fd(), offset, data, sync.rw_flags())
        })?;
        let count = if mutant::active(Mutant::ShortWriteUnreported) {
            data.len()
        } else {
            count
        };
        Ok(Written {
            count,
            cleared_set_id,
        })
    }

    /// What a close(2) of the file reports, without closing it: the lower filesystem's
    /// own flush runs on a duplicate.
    ///
    /// # Errors
    /// Those of close(2).
    pub fn flush(&self, handle: HandleId) -> Result<()> {
        let file = self.handles.file(handle)?;
        sys::close(rustix::io::fcntl_dupfd_cloexec(&*file, 0)?)
    }

    /// fsync(2), or fdatasync(2) with `data_only`. Answered when the lower filesystem
    /// has answered.
    ///
    /// # Errors
    /// Those of fsync(2): each open file learns of a failed write-back once.
    pub fn fsync(&self, handle: HandleId, data_only: bool) -> Result<()> {
        let file = self.handles.file(handle)?;
        if mutant::active(Mutant::FsyncIgnored) {
            return Ok(());
        }
        let synced = if data_only {
            fdatasync(&*file)
        } else {
            fsync(&*file)
        };
        if mutant::active(Mutant::FsyncErrorSwallowed) {
            return Ok(());
        }
        synced
    }

    /// The open file of a handle.
    fn file(&self, node: NodeId, handle: HandleId) -> Result<Arc<OpenFile>> {
        match self.handles.file(handle) {
            Err(Errno::BADF) if mutant::active(Mutant::ReopenOnEbadf) => {
                let fd = Self::reopen(&*self.nodes.get(node)?, OFlags::RDWR)?;
                Ok(Arc::new(OpenFile::new(fd, 0)))
            }
            found => found,
        }
    }

    /// fallocate(2) with its modes as they are; the lower filesystem judges them. Returns
    /// whether the file had set-id bits that may be gone now: the kernel leaves it to
    /// the server to clear them, and does not say so in the request.
    ///
    /// # Errors
    /// Those of fallocate(2).
    pub fn fallocate(
        &self,
        caller: Caller,
        handle: HandleId,
        (offset, length): (u64, u64),
        mode: i32,
    ) -> Result<bool> {
        let file = self.handles.file(handle)?;
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let changed = clearing_set_id(caller.unless_root(), &*file, || {
            fallocate(&*file, mode, offset, length)
        });
        changed.map(|((), cleared_set_id)| cleared_set_id)
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`; the kernel does the others itself.
    ///
    /// # Errors
    /// Those of lseek(2); EINVAL for any other `whence`.
    pub fn lseek(&self, handle: HandleId, offset: u64, whence: i32) -> Result<u64> {
        let file = self.handles.file(handle)?;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        // That this moves the descriptor's position does no harm: reads and writes
        // carry their own.
        seek(&*file, from)
    }

    /// copy_file_range(2) between two open files; a write like any other to the second.
    ///
    /// # Errors
    /// Those of copy_file_range(2).
    pub fn copy_file_range(
        &self,
        caller: Caller,
        from: (HandleId, u64),
        to: (HandleId, u64),
        length: u64,
    ) -> Result<Written> {
        let source = self.handles.file(from.0)?;
        let sink = self.handles.file(to.0)?;
        let length = usize::try_from(length.min(MAX_COPY)).map_err(|_| Errno::INVAL)?;
        let (mut read_at, mut write_at) = (from.1, to.1);
        let (count, cleared_set_id) = clearing_set_id(caller.unless_root(), &*sink, || {
            rustix::fs::copy_file_range(
                &*source,
                Some(&mut read_at),
                &*sink,
                Some(&mut write_at),
                length,
            )
        })?;
        Ok(Written {
            count,
            cleared_set_id,
        })
    }
}

/// Writes until everything is written or something goes wrong; returns how much.
fn write_all(
    file: BorrowedFd<'_>,
    offset: u64,
    data: &[u8],
    flags: ReadWriteFlags,
) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        let rest = [IoSlice::new(&data[done..])];
        match pwritev2(file, &rest, offset + done as u64, flags) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(_) if done > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
