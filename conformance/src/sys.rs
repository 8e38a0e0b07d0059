//! The system calls that rustix does not have safely: private working directories,
//! mappings, byte-range locks.

#![expect(
    unsafe_code,
    reason = "mmap(2), fcntl(2) locks and unshare(2) of a thread"
)]

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, fcntl_dupfd_cloexec, pread, pwrite};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use rustix::thread::UnshareFlags;

/// Gives this thread a working directory and a umask of its own.
///
/// # Errors
/// As unshare(2).
pub(crate) fn private_directory_and_umask() -> Result<(), Errno> {
    // SAFETY: CLONE_FILES is not among the flags, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
}

/// A mapping of a file. Its memory is touched by the kernel alone, on behalf of
/// pread(2) and pwrite(2): a page beyond the file's end is then EFAULT, where a load
/// or store would be SIGBUS.
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    length: usize,
    bounce: OwnedFd,
    file: OwnedFd,
    offset: u64,
}

// SAFETY: the mapping belongs to the address space, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// # Errors
    /// As mmap(2).
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        shared: bool,
        writable: bool,
        offset: u64,
        length: usize,
    ) -> Result<Self, Errno> {
        let bounce = memfd_create("bounce", MemfdFlags::CLOEXEC)?;
        let kept = fcntl_dupfd_cloexec(file, 0)?;
        let flags = if shared {
            MapFlags::SHARED
        } else {
            MapFlags::PRIVATE
        };
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: a new mapping at an address that the kernel chooses; nothing refers
        // to it but this value.
        let start = unsafe { mmap(null_mut(), length, protection, flags, file, offset) }?;
        let start = NonNull::new(start).ok_or(Errno::NOMEM)?;
        Ok(Mapping {
            start,
            length,
            bounce,
            file: kept,
            offset,
        })
    }

    /// The bytes at `at`, fewer if the rest cannot be read.
    ///
    /// # Errors
    /// EFAULT if none can be.
    pub(crate) fn read(&self, at: usize, length: usize) -> Result<Vec<u8>, Errno> {
        let (address, length) = self.range(at, length)?;
        // SAFETY: the range lies in the mapping; the kernel checks each page.
        let count = unsafe { libc::pwrite(self.bounce.as_raw_fd(), address, length, 0) };
        let count = returned(count)?;
        let mut bytes = vec![0; count];
        pread(&self.bounce, &mut bytes, 0)?;
        Ok(bytes)
    }

    /// Stores the bytes at `at`; returns how many.
    ///
    /// # Errors
    /// EFAULT if none can be stored.
    pub(crate) fn write(&self, at: usize, bytes: &[u8]) -> Result<usize, Errno> {
        pwrite(&self.bounce, bytes, 0)?;
        let (address, length) = self.range(at, bytes.len())?;
        // SAFETY: the range lies in the mapping, of which no reference exists; the
        // kernel checks each page.
        let count = unsafe { libc::pread(self.bounce.as_raw_fd(), address, length, 0) };
        returned(count)
    }

    /// Writes back, as msync(2) with MS_SYNC.
    ///
    /// # Errors
    /// As msync(2).
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        // SAFETY: the range is the mapping's.
        unsafe { msync(self.start.as_ptr(), self.length, MsyncFlags::SYNC) }
    }

    /// Only what the file has: the rest of its last page holds zeros or what was stored
    /// there, as the kernel pleases (mmap(2)), and pages after it are EFAULT.
    fn range(&self, at: usize, length: usize) -> Result<(*mut c_void, usize), Errno> {
        let size = rustix::fs::fstat(&self.file)?.st_size.cast_unsigned();
        let mapped = usize::try_from(size.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let mapped = mapped.min(self.length);
        let whole_pages = mapped.next_multiple_of(4096).min(self.length);
        let length = match at {
            _ if at < mapped => length.min(mapped - at),
            _ if at < whole_pages => return Err(Errno::FAULT),
            _ => length.min(self.length.saturating_sub(at)),
        };
        Ok((
            self.start.as_ptr().wrapping_byte_add(at.min(self.length)),
            length,
        ))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's, and nothing refers to it any more.
        let _unmapped = unsafe { munmap(self.start.as_ptr(), self.length) };
    }
}

fn returned(count: isize) -> Result<usize, Errno> {
    usize::try_from(count).map_err(|_| last_error())
}

fn last_error() -> Errno {
    let code = std::io::Error::last_os_error().raw_os_error();
    Errno::from_raw_os_error(code.unwrap_or(libc::EIO))
}

/// One of fcntl(2)'s lock commands, with its lock.
///
/// # Errors
/// As fcntl(2).
pub(crate) fn lock(
    file: impl AsFd,
    command: i32,
    kind: i32,
    start: i64,
    length: i64,
) -> Result<(i32, i64, i64), Errno> {
    let mut lock = libc::flock {
        l_type: i16::try_from(kind).map_err(|_| Errno::INVAL)?,
        l_whence: 0,
        l_start: start,
        l_len: length,
        l_pid: 0,
    };
    // SAFETY: the commands that are passed take a pointer to a flock, which outlives
    // the call.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), command, &raw mut lock) };
    if result < 0 {
        return Err(last_error());
    }
    Ok((lock.l_type.into(), lock.l_start, lock.l_len))
}

/// truncate(2) itself: it opens nothing, so its errors differ from those of open(2).
///
/// # Errors
/// As truncate(2).
pub(crate) fn truncate(path: impl rustix::path::Arg, length: u64) -> Result<(), Errno> {
    let length = i64::try_from(length).map_err(|_| Errno::INVAL)?;
    path.into_with_c_str(|path| {
        // SAFETY: the path is a C string.
        let result = unsafe { libc::truncate(path.as_ptr(), length) };
        if result < 0 {
            Err(last_error())
        } else {
            Ok(())
        }
    })
}
