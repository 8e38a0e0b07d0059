//! The answer to one request, given once.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::abi::{self, Attr, EntryOut, OpenOut};
use crate::device::Device;

/// The duty to answer a request. Each method answers; dropped without one it answers EIO,
/// for a client that nobody answers waits for ever.
#[derive(Debug)]
pub struct Reply<'d> {
    device: &'d Device,
    kept: Option<&'d RefCell<Answer>>,
    unique: u64,
    answered: bool,
}

/// An answer that goes to the kernel when the request has been dealt with.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// An errno, or 0.
    pub(crate) error: i32,
    /// What follows the header.
    pub(crate) bytes: Vec<u8>,
}

/// A name that was found or made, as LOOKUP and its like answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The node; 0 says that there is none and that this may be remembered.
    pub node: u64,
    /// Distinguishes files that had the same node id one after the other.
    pub generation: u64,
    /// How long the name may be believed.
    pub entry_valid: Duration,
    /// How long the attributes may be believed.
    pub attr_valid: Duration,
    /// The attributes.
    pub attr: Attr,
}

impl Entry {
    fn to_wire(self) -> EntryOut {
        EntryOut {
            nodeid: self.node,
            generation: self.generation,
            entry_valid: self.entry_valid.as_secs(),
            attr_valid: self.attr_valid.as_secs(),
            entry_valid_nsec: self.entry_valid.subsec_nanos(),
            attr_valid_nsec: self.attr_valid.subsec_nanos(),
            attr: self.attr,
        }
    }
}

/// How an OPEN or CREATE is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Opened {
    /// The handle.
    pub fh: u64,
    /// Bits of [`crate::abi::fopen`].
    pub flags: u32,
    /// The backing file's number, with `PASSTHROUGH` among the flags; otherwise 0.
    pub backing: i32,
}

impl Opened {
    fn to_wire(self) -> OpenOut {
        OpenOut {
            fh: self.fh,
            open_flags: self.flags,
            backing_id: self.backing,
        }
    }
}

impl Answer {
    /// Makes this an error.
    pub(crate) fn refuse(&mut self, error: Errno) {
        self.error = error.raw_os_error();
        self.bytes.clear();
    }
}

impl<'d> Reply<'d> {
    /// The duty to answer `unique` on `device`.
    #[must_use]
    pub fn new(device: &'d Device, unique: u64) -> Self {
        Reply {
            device,
            kept: None,
            unique,
            answered: false,
        }
    }

    /// The duty to answer a request that did not come through `device`, into `answer`.
    pub(crate) fn keep(device: &'d Device, unique: u64, answer: &'d RefCell<Answer>) -> Self {
        Reply {
            device,
            kept: Some(answer),
            unique,
            answered: false,
        }
    }

    /// The connection, for what must be done there before the answer.
    #[must_use]
    pub fn device(&self) -> &'d Device {
        self.device
    }

    /// Whether the kernel took the answer. It does not when the connection is
    /// gone; who has counted a lookup or opened a file for this answer takes that back.
    fn send(mut self, error: i32, parts: &[&[u8]]) -> bool {
        self.answered = true;
        match self.give(error, parts) {
            Ok(()) => true,
            Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => false,
            Err(failed) => {
                tracing::error!(error = %failed, unique = self.unique, "the kernel refused an answer");
                // Whatever was wrong with it, somebody waits.
                let _gone = self.give(libc::EIO, &[]);
                false
            }
        }
    }

    fn give(&self, error: i32, parts: &[&[u8]]) -> Result<(), Errno> {
        let Some(kept) = self.kept else {
            return self.device.answer(self.unique, error, parts);
        };
        let mut answer = kept.borrow_mut();
        answer.error = error;
        answer.bytes.clear();
        for part in parts {
            answer.bytes.extend_from_slice(part);
        }
        Ok(())
    }

    /// Says that it failed.
    pub fn error(self, error: Errno) {
        self.send(error.raw_os_error(), &[]);
    }

    /// Says that it is done.
    pub fn ok(self) {
        self.send(0, &[]);
    }

    /// Says that it is done, or why not.
    pub fn empty(self, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.ok(),
            Err(error) => self.error(error),
        }
    }

    /// Answers LOOKUP, MKNOD, MKDIR, SYMLINK or LINK; returns whether the kernel took it.
    #[must_use]
    pub fn entry(self, entry: &Entry) -> bool {
        self.send(0, &[entry.to_wire().as_bytes()])
    }

    /// Answers CREATE or TMPFILE; returns whether the kernel took it.
    #[must_use]
    pub fn created(self, entry: &Entry, opened: Opened) -> bool {
        let (entry, opened) = (entry.to_wire(), opened.to_wire());
        self.send(0, &[entry.as_bytes(), opened.as_bytes()])
    }

    /// Answers OPEN or OPENDIR; returns whether the kernel took it.
    #[must_use]
    pub fn opened(self, opened: Opened) -> bool {
        self.send(0, &[opened.to_wire().as_bytes()])
    }

    /// Answers GETATTR or SETATTR.
    pub fn attr(self, attr: &Attr, valid: Duration) {
        let out = abi::AttrOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            dummy: 0,
            attr: *attr,
        };
        self.send(0, &[out.as_bytes()]);
    }

    /// Answers STATX.
    pub fn statx(self, stat: &abi::Statx, valid: Duration) {
        let out = abi::StatxOut {
            attr_valid: valid.as_secs(),
            attr_valid_nsec: valid.subsec_nanos(),
            stat: *stat,
            ..abi::StatxOut::default()
        };
        self.send(0, &[out.as_bytes()]);
    }

    /// Answers READ, READLINK, READDIR, GETXATTR or LISTXATTR with bytes.
    pub fn data(self, data: &[u8]) {
        self.send(0, &[data]);
    }

    /// Answers WRITE or COPY_FILE_RANGE with a count of bytes.
    pub fn written(self, count: u32) {
        self.send(
            0,
            &[abi::WriteOut {
                size: count,
                padding: 0,
            }
            .as_bytes()],
        );
    }

    /// Answers COPY_FILE_RANGE_64 with a count of bytes.
    pub fn copied(self, count: u64) {
        self.send(
            0,
            &[abi::CopyFileRangeOut {
                bytes_copied: count,
            }
            .as_bytes()],
        );
    }

    /// Answers STATFS.
    pub fn statfs(self, stat: &abi::Kstatfs) {
        self.send(0, &[stat.as_bytes()]);
    }

    /// Answers GETXATTR or LISTXATTR that asked for the size alone.
    pub fn xattr_size(self, size: u32) {
        self.send(0, &[abi::GetxattrOut { size, padding: 0 }.as_bytes()]);
    }

    /// Answers LSEEK.
    pub fn offset(self, offset: u64) {
        self.send(0, &[abi::LseekOut { offset }.as_bytes()]);
    }

    /// Answers IOCTL with what the call returned and wrote.
    pub fn ioctl(self, result: i32, data: &[u8]) {
        let out = abi::IoctlOut {
            result,
            ..abi::IoctlOut::default()
        };
        self.send(0, &[out.as_bytes(), data]);
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if !self.answered {
            tracing::error!(unique = self.unique, "a request was dropped: answering EIO");
            let _gone = self.give(libc::EIO, &[]);
        }
    }
}

/// The names of one READDIR or READDIRPLUS answer.
#[derive(Debug)]
pub struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

/// One name of a listing.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a> {
    /// The name.
    pub name: &'a OsStr,
    /// The inode number to show.
    pub ino: u64,
    /// The position after this name.
    pub next: u64,
    /// `DT_DIR` and so on, or `DT_UNKNOWN`.
    pub kind: u32,
}

impl Listing {
    /// An empty listing of at most `room` bytes.
    #[must_use]
    pub fn new(room: u32) -> Self {
        let room = room as usize;
        Listing {
            bytes: Vec::with_capacity(room),
            room,
        }
    }

    /// The answer.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds a name for READDIR; returns whether there was room.
    #[must_use]
    pub fn push(&mut self, name: Name<'_>) -> bool {
        self.fits(0, name) && self.append(name)
    }

    /// Adds a name with its entry for READDIRPLUS, a lookup that the kernel counts unless
    /// the entry's node is 0; returns whether there was room.
    #[must_use]
    pub fn push_plus(&mut self, name: Name<'_>, entry: &Entry) -> bool {
        if !self.fits(size_of::<EntryOut>(), name) {
            return false;
        }
        self.bytes.extend_from_slice(entry.to_wire().as_bytes());
        self.append(name)
    }

    fn fits(&self, before: usize, name: Name<'_>) -> bool {
        let dirent = (size_of::<abi::Dirent>() + name.name.len()).next_multiple_of(8);
        self.bytes.len() + before + dirent <= self.room
    }

    fn append(&mut self, name: Name<'_>) -> bool {
        let bytes = name.name.as_bytes();
        let dirent = abi::Dirent {
            ino: name.ino,
            off: name.next,
            // Checked by `fits` against a room of 32 bits.
            namelen: bytes.len() as u32,
            kind: name.kind,
        };
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        true
    }
}
