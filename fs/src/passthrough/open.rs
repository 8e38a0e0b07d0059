//! Opening and creating files, and in which I/O mode.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};

use plugpull_fuse::abi::fopen;
use plugpull_fuse::{BackingId, Device};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};

use super::{CachePolicy, Entry, IoMode, Passthrough, check_name, clearing_set_id};
use crate::caller::lowering_fsetid;
use crate::handles::OpenFile;
use crate::mutant::{self, Mutant};
use crate::nodes::{MagicLink, Node};
use crate::{Caller, Errno, HandleId, NodeId, Result};

/// An open file as the kernel is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub handle: HandleId,
    /// Bits of [`plugpull_fuse::abi::fopen`].
    pub flags: u32,
    /// The file that the kernel reads and writes itself.
    pub backing: Option<BackingId>,
}

/// Where files are registered that the kernel reads and writes itself.
pub trait Backing {
    /// Registers a file.
    ///
    /// # Errors
    /// That the kernel will not do its I/O itself.
    fn open(&self, file: BorrowedFd<'_>) -> Result<BackingId>;

    /// Gives a number back.
    fn close(&self, id: BackingId);
}

/// For kernels and tests without such files.
#[derive(Debug, Clone, Copy)]
pub struct NoBacking;

impl Backing for NoBacking {
    fn open(&self, _file: BorrowedFd<'_>) -> Result<BackingId> {
        Err(Errno::OPNOTSUPP)
    }

    fn close(&self, _id: BackingId) {}
}

impl Backing for Device {
    fn open(&self, file: BorrowedFd<'_>) -> Result<BackingId> {
        // The kernel writes with the rights that the registering thread has now. Without
        // CAP_FSETID the lower filesystem clears set-id bits when somebody writes to a
        // file that was given them while it was open.
        lowering_fsetid(|| self.open_backing(file))
    }

    fn close(&self, id: BackingId) {
        if let Err(error) = self.close_backing(id) {
            tracing::error!(%error, ?id, "cannot give a backing file back");
        }
    }
}

impl Passthrough {
    /// open(2) of an inode that exists. If somebody is named in `clears_set_id`, set-id
    /// bits that this caller may not keep do not survive a truncation by `O_TRUNC`.
    ///
    /// # Errors
    /// Those of open(2); ENXIO for anything but a regular file, because opening a
    /// device or a fifo of the source would act on the host.
    pub fn open(
        &self,
        id: NodeId,
        flags: i32,
        clears_set_id: Option<Caller>,
        backing: &impl Backing,
    ) -> Result<Opened> {
        if self.nodes.kind(id)? != FileType::RegularFile {
            return Err(Errno::NXIO);
        }
        let mut how = self.lower_flags(flags);
        how.set(OFlags::TRUNC, flags & libc::O_TRUNC != 0);
        let mut direct = self.settings.io == IoMode::Direct;
        let clears_set_id = clears_set_id.filter(|_| how.contains(OFlags::TRUNC));
        let open = |how| match clears_set_id {
            None => self.nodes.open(id, how),
            by => {
                let node = self.nodes.get(id)?;
                clearing_set_id(by, &*node, || self.nodes.open(id, how)).map(|(file, _)| file)
            }
        };
        let file = match open(how) {
            // An append-only inode (FS_APPEND_FL) is opened with the flag or not at all.
            // Its writes end where the kernel says, for that is the file's end.
            Err(Errno::PERM) if flags & libc::O_APPEND != 0 => open(how | OFlags::APPEND)?,
            // Write-back may have to read the rest of a page, which this server may not:
            // it is not root and the file is write-only. Then without the page cache.
            Err(Errno::ACCESS) if self.widens_access(flags) => {
                direct = true;
                open((how - OFlags::RDWR) | OFlags::WRONLY)?
            }
            opened => opened?,
        };
        self.enter_open(id, OpenFile::new(file, flags), direct, None, backing)
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
        backing: &impl Backing,
    ) -> Result<(Entry, Opened)> {
        check_name(name)?;
        let parent = self.nodes.get(parent)?;
        let exclusive = flags & libc::O_EXCL != 0;
        let how = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        match self.create_as(caller, &parent, name, mode, flags, how) {
            Err(Errno::EXIST) if !exclusive => Err(Errno::STALE),
            created => self.enter_created(created?, backing),
        }
    }

    /// Creates and opens a file that has no name (`O_TMPFILE`). It may get one by link(2),
    /// unless `O_EXCL` is given.
    ///
    /// # Errors
    /// Those of open(2); EOPNOTSUPP where the lower filesystem has no such files.
    pub fn tmpfile(
        &self,
        caller: Caller,
        parent: NodeId,
        mode: u32,
        flags: i32,
        backing: &impl Backing,
    ) -> Result<(Entry, Opened)> {
        let parent = self.nodes.get(parent)?;
        let mut how = OFlags::TMPFILE;
        how.set(OFlags::EXCL, flags & libc::O_EXCL != 0);
        let created = self.create_as(caller, &parent, ".".as_ref(), mode, flags, how)?;
        self.enter_created(created, backing)
    }

    /// Forgets an open file.
    pub fn release(&self, id: NodeId, handle: HandleId, backing: &impl Backing) {
        if !self.handles.release_file(id, handle) {
            // A second RELEASE of the same open file must not count as another's.
            return;
        }
        if self.settings.io == IoMode::Passthrough
            && let Some(unused) = self.io_modes.leave(id)
        {
            backing.close(unused);
        }
    }

    fn create_as(
        &self,
        caller: Caller,
        parent: &Node,
        name: &OsStr,
        mode: u32,
        flags: i32,
        how: OFlags,
    ) -> Result<OpenFile> {
        let how = how | self.lower_flags(flags) | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        let fd = caller.creating(|| openat(parent, name, how, mode))?;
        Ok(OpenFile::new(fd, flags))
    }

    fn enter_created(&self, file: OpenFile, backing: &impl Backing) -> Result<(Entry, Opened)> {
        let entry = match self.nodes.enter_made(file.descriptor())? {
            Some((generation, stat)) => self.entry(generation, &stat),
            None => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let link = MagicLink::of(&file);
                let path_fd = openat(rustix::fs::CWD, link.as_c_str(), flags, Mode::empty())?;
                self.enter(path_fd)?.0
            }
        };
        let direct = self.settings.io == IoMode::Direct;
        match self.enter_open(entry.node, file, direct, Some(entry.attr.mode), backing) {
            Ok(opened) => Ok((entry, opened)),
            Err(error) => {
                self.nodes.forget(entry.node, 1);
                Err(error)
            }
        }
    }

    /// Enters an open file into the tables and settles who does its I/O.
    fn enter_open(
        &self,
        id: NodeId,
        file: OpenFile,
        direct: bool,
        known_mode: Option<u32>,
        backing: &impl Backing,
    ) -> Result<Opened> {
        let mut flags = 0;
        if !self.flush_matters {
            flags |= fopen::NOFLUSH;
        }
        let mut backing_id = None;
        let mut comes_here = false;
        if self.settings.io == IoMode::Passthrough {
            // Writes to a file with set-id bits go through the server, which clears them
            // and lets the kernel know.
            let mode = known_mode.map_or_else(|| fstat(&file).map(|stat| stat.st_mode), Ok)?;
            let has_set_id = mode & (libc::S_ISUID | libc::S_ISGID) != 0;
            let settle = || (!has_set_id).then(|| settle(&file, backing)).flatten();
            backing_id = self.io_modes.enter(id, settle);
            // The inode may be open already, from a time when it had no such bits. And the
            // kernel opens its own lower file with the flags of now, from which fcntl(2)
            // could not take O_APPEND back.
            comes_here = has_set_id || file.appends();
        }
        let mut file = file;
        if backing_id.is_some() {
            flags |= fopen::PASSTHROUGH;
            if comes_here {
                // What is mapped is the lower file's all the same.
                flags |= fopen::DIRECT_IO;
            }
        } else if direct {
            flags |= fopen::DIRECT_IO | fopen::PARALLEL_DIRECT_WRITES;
        } else {
            file.is_cached = true;
            if self.settings.cache != CachePolicy::None {
                flags |= fopen::KEEP_CACHE;
            }
        }
        let handle = self.handles.enter_file(id, file)?;
        Ok(Opened {
            handle,
            flags,
            backing: backing_id,
        })
    }

    /// The flags with which the lower file is opened: the access mode and little else.
    ///
    /// - `O_APPEND` must go: the kernel sends offsets, and pwrite(2) on such a descriptor
    ///   ignores its offset (BUGS in pwrite(2)).
    /// - `O_SYNC` and `O_DSYNC` are honoured for each write, from the request's own flags.
    /// - `O_DIRECT` stays; each request's own flags say whether it still holds.
    /// - `O_CREAT`, `O_EXCL` and `O_NOFOLLOW` were the kernel's to honour.
    fn lower_flags(&self, flags: i32) -> OFlags {
        let mut kept = libc::O_ACCMODE | libc::O_NOATIME | libc::O_DIRECT;
        if mutant::active(Mutant::AppendFlagKept) {
            kept |= libc::O_APPEND;
        }
        let mut how = flags & kept;
        if self.widens_access(flags) {
            how = (how & !libc::O_ACCMODE) | libc::O_RDWR;
        }
        OFlags::from_bits_retain(how.cast_unsigned())
    }

    /// Whether a file that is opened for writing must be readable too: before it
    /// writes part of a page back the kernel reads the page.
    fn widens_access(&self, flags: i32) -> bool {
        self.settings.io == IoMode::Writeback && flags & libc::O_ACCMODE == libc::O_WRONLY
    }
}

/// Lets the kernel do the I/O of this file itself, if it can.
fn settle(file: &OpenFile, backing: &impl Backing) -> Option<BackingId> {
    match backing.open(file.as_fd()) {
        Ok(id) => Some(id),
        Err(error) => {
            tracing::debug!(%error, "no passthrough for a file");
            None
        }
    }
}
