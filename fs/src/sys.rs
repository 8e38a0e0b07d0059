//! The system calls that rustix does not have, wrapped so that the rest is safe.
#![expect(
    unsafe_code,
    reason = "setfsuid, truncate, fork, sigwait, ioctl, file handles and a close that reports its error exist only in libc"
)]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::OFlags;
use rustix::path::Arg;
use rustix::process::Pid;

use crate::nodes::FileHandle;
use crate::{Errno, Result};

/// Sets the filesystem user id of the calling thread; needs `CAP_SETUID`.
///
/// Unlike seteuid(2) in glibc this concerns one thread only: setfsuid(2) is a plain
/// system call.
pub fn set_thread_fsuid(uid: u32) {
    // SAFETY: takes and returns plain integers.
    unsafe { libc::setfsuid(uid) };
}

/// Sets the filesystem group id of the calling thread; needs `CAP_SETGID`.
pub fn set_thread_fsgid(gid: u32) {
    // SAFETY: takes and returns plain integers.
    unsafe { libc::setfsgid(gid) };
}

/// truncate(2), which rustix does not have: unlike ftruncate(2) it leaves the times of a file
/// that has that size already to the filesystem (`do_truncate` in fs/open.c).
///
/// # Errors
/// Those of truncate(2).
pub(crate) fn truncate(path: &CStr, size: u64) -> Result<()> {
    let size = size.try_into().map_err(|_| Errno::FBIG)?;
    // SAFETY: a path that ends, and a number.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// Gives the calling thread a umask (and a working directory) of its own.
///
/// # Errors
/// Any error of unshare(2).
pub fn separate_thread_umask() -> Result<()> {
    // SAFETY: CLONE_FILES is not asked for, so descriptors keep their meaning.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }
}

/// The largest argument of an ioctl that is passed on, in bytes.
const IOCTL_BYTES: usize = 64;

/// Calls ioctl(2) with an argument of plain bytes: `input`, and zeros up to 64. Returns
/// what it returned and the argument afterwards.
///
/// Only for calls whose argument holds no pointer and fits; [`crate::passthrough`] lists
/// them.
///
/// # Errors
/// Any error of ioctl(2); EINVAL for an input that is too long.
pub(crate) fn ioctl_bytes(
    file: impl AsFd,
    command: u32,
    input: &[u8],
) -> Result<(i32, [u8; IOCTL_BYTES])> {
    // A u64 is as aligned as any argument wants to be.
    let mut words = [0_u64; IOCTL_BYTES / 8];
    let mut bytes = [0; IOCTL_BYTES];
    bytes
        .get_mut(..input.len())
        .ok_or(Errno::INVAL)?
        .copy_from_slice(input);
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(chunk.try_into().unwrap_or_default());
    }
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the callers pass calls that read and write at most 28 bytes through the
    // pointer, which leads to 64 live ones.
    let result = unsafe { libc::ioctl(fd, command.into(), words.as_mut_ptr()) };
    if result < 0 {
        return Err(last_error());
    }
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    Ok((result, bytes))
}

/// Closes a descriptor and reports what close(2) said.
///
/// # Errors
/// Any error of close(2); the descriptor is gone in every case.
pub fn close(fd: OwnedFd) -> Result<()> {
    close_number(fd.into_raw_fd())
}

/// Closes whatever descriptor has this number at the moment.
///
/// Only the mutants that are *about* descriptor numbers call this from outside.
///
/// # Errors
/// Any error of close(2).
pub(crate) fn close_number(fd: RawFd) -> Result<()> {
    // SAFETY: close(2) of any integer is defined; the callers own the descriptor,
    // or are mutants whose error is to close what they should not.
    match unsafe { libc::close(fd) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// The file handle of what a name in `dir` stands for, itself if it is a symbolic link,
/// and the number of the mount that it is on; with an empty name those of `dir`
/// (name_to_handle_at(2)).
///
/// # Errors
/// EOPNOTSUPP when the filesystem has none; those of a walk to the name.
pub(crate) fn name_to_handle(dir: &impl AsFd, name: impl Arg) -> Result<(FileHandle, MountId)> {
    let mut handle = FileHandle::room();
    let mut mount = 0;
    let dir = dir.as_fd().as_raw_fd();
    let done = name.into_with_c_str(|name| {
        // SAFETY: the name ends with a NUL; `FileHandle` has the layout of
        // `struct file_handle` and says truly how much room it has; both pointers are to
        // live locals.
        Ok(unsafe {
            libc::name_to_handle_at(
                dir,
                name.as_ptr(),
                (&raw mut handle).cast(),
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        })
    })?;
    match done {
        0 => Ok((handle, MountId(mount))),
        _ => Err(last_error()),
    }
}

/// The number of a mount, as in /proc/self/mountinfo: unique while it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MountId(i32);

/// Opens the inode of a file handle on the filesystem of `mount` (open_by_handle_at(2)).
///
/// # Errors
/// ESTALE when the inode is no more, EPERM without `CAP_DAC_READ_SEARCH`.
pub(crate) fn open_by_handle(
    mount: &impl AsFd,
    handle: &FileHandle,
    flags: OFlags,
) -> Result<OwnedFd> {
    let mut handle = *handle;
    let flags = flags.bits().cast_signed();
    // SAFETY: `FileHandle` has the layout of `struct file_handle`, and the pointer is to
    // a live local.
    let fd = unsafe {
        libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut handle).cast(), flags)
    };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the call has just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What [`fork`] returns to whom.
#[derive(Debug)]
pub enum Forked {
    /// In the old process, with the new one's number.
    Parent(Pid),
    /// In the new one.
    Child,
}

/// Forks a process that has one thread.
///
/// # Errors
/// Any error of fork(2), and `EBUSY` when other threads are running, for they would
/// not exist in the child while their locks would.
pub fn fork() -> Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads != 1 {
        return Err(Errno::BUSY);
    }
    // SAFETY: no other thread exists, as checked above, so the child may run any code.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        child => Pid::from_raw(child)
            .filter(|_| child > 0)
            .map(Forked::Parent)
            .ok_or_else(last_error),
    }
}

/// Signals that are blocked everywhere and fetched by [`BlockedSignals::wait`].
#[derive(Debug)]
pub struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    /// Blocks the signals that ask a server to end, SIGTERM, SIGINT and SIGHUP, in this
    /// thread and those that it starts later.
    ///
    /// # Errors
    /// Any error of pthread_sigmask(3).
    pub fn termination() -> Result<Self> {
        // SAFETY: sigemptyset initialises the set before it is read, and every pointer
        // is to a live local.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            match libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) {
                0 => Ok(Self(set)),
                error => Err(Errno::from_raw_os_error(error)),
            }
        }
    }

    /// Waits for one of the signals and returns its number.
    ///
    /// # Errors
    /// Any error of sigwait(3).
    pub fn wait(&self) -> Result<i32> {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        match unsafe { libc::sigwait(&self.0, &mut signal) } {
            0 => Ok(signal),
            error => Err(Errno::from_raw_os_error(error)),
        }
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
