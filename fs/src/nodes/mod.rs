//! Nodes: which inode of the source the kernel means by a node id.
//!
//! ```text
//! table   every known inode, its lookup count, its descriptor: the locks are here
//! handle  file handles as values, and how little of one must be kept
//! lower   the system calls on the source that the table needs
//! model   the table under every order of threads that shuttle thinks of
//! ```

mod handle;
mod lower;
#[cfg(all(test, feature = "shuttle"))]
mod model;
mod table;

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, RawMode};

pub(crate) use handle::FileHandle;
pub(crate) use table::NodeTable;

/// The number by which the kernel names an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u64);

impl NodeId {
    /// The root of the mount.
    pub const ROOT: NodeId = NodeId(1);

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        NodeId(number)
    }
}

/// What an inode is, as the topmost four bits of `st_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    fn of(mode: RawMode) -> Self {
        Kind(((mode >> 12) & 0xf) as u8)
    }

    fn file_type(self) -> FileType {
        FileType::from_raw_mode(RawMode::from(self.0) << 12)
    }
}

/// An inode of the source, for as long as the holder needs it: its `O_PATH`
/// descriptor closes when the last holder lets go.
#[derive(Debug)]
pub(crate) struct Node<F = OwnedFd> {
    fd: F,
    generation: u32,
}

impl<F> Node<F> {
    /// Distinguishes two files that had the same number one after the other; the same
    /// after a restart of the server. The kernel compares 32 bits of it
    /// (`fuse_stale_inode` in fs/fuse/fuse_i.h).
    pub(crate) fn generation(&self) -> u64 {
        self.generation.into()
    }
}

impl Node {
    /// A path that leads to exactly this inode, for the system calls that refuse an
    /// `O_PATH` descriptor. It is a magic link: nothing is resolved, not even when
    /// the inode is a symbolic link.
    pub(crate) fn magic_link(&self) -> MagicLink {
        MagicLink::of(&self.fd)
    }
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The path `/proc/self/fd/N` of a descriptor of this process, on the stack.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MagicLink([u8; MagicLink::SIZE]);

impl MagicLink {
    /// The directory, ten digits and a NUL.
    const SIZE: usize = 32;

    pub(crate) fn of(fd: &impl AsFd) -> Self {
        let mut buffer = [0; Self::SIZE];
        // It fits; were it cut short, the path would lead to a wrong place.
        write!(
            &mut buffer[..],
            "/proc/self/fd/{}\0",
            fd.as_fd().as_raw_fd()
        )
        .expect("a descriptor has at most ten digits");
        MagicLink(buffer)
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).expect("written with a NUL")
    }
}
