//! The connection: one open `/dev/fuse`, or anything that carries the same packets.
#![expect(
    unsafe_code,
    reason = "the ioctls of /dev/fuse exist in no safe library"
)]

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, writev};
use zerocopy::IntoBytes;

use crate::abi::{self, BackingMap, InHeader, OutHeader, WriteIn};
use crate::pages::{PAGE_BYTES, Pages};

/// `FUSE_DEV_IOC_BACKING_OPEN` and its counterpart (include/uapi/linux/fuse.h).
const IOC_BACKING_OPEN: libc::Ioctl = libc::_IOW::<BackingMap>(229, 1);
const IOC_BACKING_CLOSE: libc::Ioctl = libc::_IOW::<u32>(229, 2);

/// A file that the kernel reads and writes itself (`FUSE_PASSTHROUGH`). The number is
/// the connection's; [`Device::close_backing`] gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackingId(pub i32);

/// One side of a FUSE connection.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
}

impl From<OwnedFd> for Device {
    fn from(fd: OwnedFd) -> Self {
        Device { fd }
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Device {
    /// Opens `/dev/fuse` for a mount to come.
    ///
    /// # Errors
    /// Those of open(2); ENOENT or ENODEV where the kernel has no FUSE.
    pub fn open() -> std::io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/fuse")?;
        Ok(Device { fd: file.into() })
    }

    /// Waits for one message and returns its bytes. A request that was taken back
    /// before it could be read is no message; the wait goes on.
    ///
    /// # Errors
    /// ENODEV when the filesystem is unmounted, ECONNABORTED when the connection was
    /// aborted; others are defects.
    pub fn receive<'b>(&self, buffer: &'b mut Buffer) -> Result<&'b [u8], Errno> {
        loop {
            match read(&self.fd, buffer.space()) {
                // The end of a socket whose other end is closed; the device has no end.
                Ok(0) => return Err(Errno::NODEV),
                Ok(length) => return Ok(buffer.message(length)),
                // Interrupted here, or the request was interrupted there.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a message can be read at once.
    pub(crate) fn is_ready(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let now = Timespec::default();
        matches!(poll(&mut fds, Some(&now)), Ok(1))
    }

    /// Answers the request `unique`, with an error or with the bytes of `parts` one after
    /// the other, at most four.
    ///
    /// # Errors
    /// Those of the device: ENOENT when nobody waits for the answer any more, EINVAL for
    /// an answer of the wrong size.
    pub fn answer(&self, unique: u64, error: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        const HEADER: usize = size_of::<OutHeader>();
        let length = HEADER + parts.iter().map(|part| part.len()).sum::<usize>();
        let header = OutHeader {
            len: u32::try_from(length).map_err(|_| Errno::OVERFLOW)?,
            error: -error,
            unique,
        };
        let empty = IoSlice::new(&[]);
        let mut slices = [IoSlice::new(header.as_bytes()), empty, empty, empty, empty];
        for (slice, part) in slices[1..].iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        loop {
            match writev(&self.fd, &slices[..=parts.len()]) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a notification, which is an answer to nobody.
    ///
    /// # Errors
    /// Those of the device; ENOENT when the kernel does not know the inode or name.
    pub fn notify(&self, code: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        self.answer(0, -code, parts)
    }

    /// Tells the kernel to forget the attributes of a node and its cached data from
    /// `offset` on; a `length` of 0 means to the end, a negative offset none of the data.
    ///
    /// # Errors
    /// Those of [`Device::notify`].
    pub fn invalidate_inode(&self, node: u64, offset: i64, length: i64) -> Result<(), Errno> {
        let out = abi::NotifyInvalInodeOut {
            ino: node,
            off: offset,
            len: length,
        };
        self.notify(abi::notify::INVAL_INODE, &[out.as_bytes()])
    }

    /// Lets the kernel read, write and map `file` itself for opens that name the
    /// returned number. Needs `CAP_SYS_ADMIN` in the initial user namespace.
    ///
    /// # Errors
    /// EPERM; ELOOP when `file` lies on a filesystem that is stacked too deep; EOPNOTSUPP
    /// or EINVAL for what is no regular file; ENOTTY on kernels without it.
    pub fn open_backing(&self, file: impl AsFd) -> Result<BackingId, Errno> {
        let map = BackingMap {
            fd: file.as_fd().as_raw_fd(),
            flags: 0,
            padding: 0,
        };
        // SAFETY: the ioctl reads one BackingMap, which lives during the call.
        let id = unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_BACKING_OPEN, &raw const map) };
        if id < 0 {
            Err(last_error())
        } else {
            Ok(BackingId(id))
        }
    }

    /// Gives a backing number back. Files that are open through it stay so.
    ///
    /// # Errors
    /// ENOENT for a number that was given back before.
    pub fn close_backing(&self, id: BackingId) -> Result<(), Errno> {
        let number = id.0.cast_unsigned();
        // SAFETY: the ioctl reads one u32, which lives during the call.
        let done =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), IOC_BACKING_CLOSE, &raw const number) };
        if done < 0 { Err(last_error()) } else { Ok(()) }
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Where a request is read to: so that the data of a WRITE begins at a page boundary,
/// and the headers lie just before it.
#[derive(Debug)]
pub struct Buffer {
    pages: Pages,
}

impl Buffer {
    /// Bytes of headers before the data of a WRITE.
    const LEAD: usize = size_of::<InHeader>() + size_of::<WriteIn>();

    /// Room for requests that carry up to `max_write` bytes of data, a whole number of pages.
    #[must_use]
    pub fn new(max_write: u32) -> Self {
        // The kernel refuses a read into less than max_write + 4096 bytes.
        Buffer {
            pages: Pages::new((max_write as usize).div_ceil(PAGE_BYTES) + 2),
        }
    }

    fn space(&mut self) -> &mut [u8] {
        &mut self.pages.bytes()[PAGE_BYTES - Self::LEAD..]
    }

    fn message(&mut self, length: usize) -> &[u8] {
        &self.space()[..length]
    }
}
