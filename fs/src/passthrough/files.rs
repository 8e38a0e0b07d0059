//! Operations on regular files and their contents.

use std::ffi::OsStr;
use std::io::IoSlice;

use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, SeekFrom, fallocate, fdatasync, fsync, openat, seek,
};
use rustix::io::{ReadWriteFlags, pread, pwritev2};

use super::{Entry, IoMode, Passthrough, check_name};
use crate::handles::OpenFile;
use crate::mutant::{self, Mutant};
use crate::nodes::magic_link;
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

impl Passthrough {
    /// open(2) of an inode that exists.
    ///
    /// # Errors
    /// Those of open(2); ENXIO for anything but a regular file, because opening a
    /// device or a fifo of the source would act on the host.
    pub fn open(&self, node: NodeId, flags: i32) -> Result<HandleId> {
        let node = self.nodes.get(node)?;
        if node.kind() != FileType::RegularFile {
            return Err(Errno::NXIO);
        }
        let fd = Self::reopen(&node, backing_flags(flags))?;
        self.handles.enter_file(OpenFile::new(fd))
    }

    /// Creates and opens a file that does not exist.
    ///
    /// # Errors
    /// Those of open(2). When the name has come into being behind the kernel's back and
    /// `O_EXCL` is not given, ESTALE: the kernel then looks the name up again and opens
    /// it with the permission check that a file of somebody else needs.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, HandleId)> {
        check_name(name)?;
        let parent = self.nodes.get(parent)?;
        let exclusive = flags & libc::O_EXCL != 0;
        let how = backing_flags(flags)
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let fd = match caller.creating(|| openat(&*parent, name, how, mode)) {
            Err(Errno::EXIST) if !exclusive => return Err(Errno::STALE),
            created => created?,
        };
        let path_flags = OFlags::PATH | OFlags::CLOEXEC;
        let path_fd = openat(rustix::fs::CWD, magic_link(&fd), path_flags, Mode::empty())?;
        let handle = self.handles.enter_file(OpenFile::new(fd))?;
        match self.enter(path_fd) {
            Ok((entry, _)) => Ok((entry, handle)),
            Err(error) => {
                self.handles.release_file(handle);
                Err(error)
            }
        }
    }

    /// Reads at `offset` until `buffer` is full or the file ends; returns how much.
    ///
    /// # Errors
    /// Those of pread(2), when nothing was read before.
    pub fn read(&self, handle: HandleId, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let file = self.handles.file(handle)?;
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

    /// Writes `data` at `offset`, as durably as `sync` says; returns how much.
    ///
    /// # Errors
    /// Those of pwrite(2), when nothing was written before; after that the count is
    /// answered and the next write gets the error, as write(2) does it.
    pub fn write(
        &self,
        handle: HandleId,
        offset: u64,
        data: &[u8],
        sync: WriteSync,
    ) -> Result<usize> {
        let file = self.handles.file(handle)?;
        let mut done = 0;
        while done < data.len() {
            let rest = [IoSlice::new(&data[done..])];
            match pwritev2(&*file, &rest, offset + done as u64, sync.rw_flags()) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
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
        if data_only {
            fdatasync(&*file)
        } else {
            fsync(&*file)
        }
    }

    /// Forgets an open file.
    pub fn release(&self, handle: HandleId) {
        self.handles.release_file(handle);
    }

    /// fallocate(2) with its modes as they are; the lower filesystem judges them.
    ///
    /// # Errors
    /// Those of fallocate(2).
    pub fn fallocate(&self, handle: HandleId, offset: u64, length: u64, mode: i32) -> Result<()> {
        let file = self.handles.file(handle)?;
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        fallocate(&*file, mode, offset, length)
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`; the kernel does the others itself.
    ///
    /// # Errors
    /// Those of lseek(2); EINVAL for any other `whence`.
    pub fn lseek(&self, handle: HandleId, offset: i64, whence: i32) -> Result<i64> {
        let file = self.handles.file(handle)?;
        let offset = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        // That this moves the descriptor's position does no harm: reads and writes
        // carry their own.
        let found = seek(&*file, from)?;
        i64::try_from(found).map_err(|_| Errno::OVERFLOW)
    }

    /// copy_file_range(2) between two open files.
    ///
    /// # Errors
    /// Those of copy_file_range(2).
    pub fn copy_file_range(
        &self,
        from: (HandleId, u64),
        to: (HandleId, u64),
        length: u64,
    ) -> Result<usize> {
        let source = self.handles.file(from.0)?;
        let sink = self.handles.file(to.0)?;
        let length = usize::try_from(length.min(MAX_COPY)).map_err(|_| Errno::INVAL)?;
        let (mut read_at, mut write_at) = (from.1, to.1);
        rustix::fs::copy_file_range(
            &*source,
            Some(&mut read_at),
            &*sink,
            Some(&mut write_at),
            length,
        )
    }

    /// Whether files are opened for direct I/O.
    #[must_use]
    pub fn opens_direct(&self) -> bool {
        self.settings.io == IoMode::Direct
    }
}

/// The flags with which the lower file is opened: the access mode and little else.
///
/// - `O_APPEND` must go: the kernel sends offsets, and pwrite(2) on such a descriptor
///   ignores its offset (BUGS in pwrite(2)).
/// - `O_SYNC` and `O_DSYNC` are honoured for each write, from the request's own flags.
/// - `O_DIRECT` would demand alignment that the request's buffer does not have; it
///   promises no durability.
/// - `O_CREAT`, `O_EXCL` and `O_NOFOLLOW` were the kernel's to honour.
fn backing_flags(flags: i32) -> OFlags {
    let kept = libc::O_ACCMODE | libc::O_NOATIME;
    OFlags::from_bits_retain((flags & kept).cast_unsigned())
}
