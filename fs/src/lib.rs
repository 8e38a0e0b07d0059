//! A passthrough FUSE filesystem with handles that never repeat and an honest fsync.
//!
//! ```text
//! kernel ── plugpull-fuse ── adapter ── passthrough ──┬── nodes     (inode table)
//!           the protocol      one arm                  ├── handles   (handle table)
//!                             per operation            ├── io_modes  (who does the I/O)
//!                                                      └── caller    (whose file is it)
//! ```
//!
//! Architecture Invariant: everything below [`adapter`] is plain functions over
//! plain values and works without `/dev/fuse`.
//!
//! Architecture Invariant: a table, its locks and its counts live in one file,
//! and no lock is held across a system call that may block.
//!
//! Architecture Invariant: no path is followed twice. The source is walked one
//! component at a time from descriptors, never through a symbolic link and never
//! across a mount.

pub mod adapter;
mod attr;
mod caller;
mod handles;
mod io_modes;
pub mod mutant;
mod nodes;
pub mod options;
pub mod passthrough;
pub mod serve;
mod sync;
pub mod sys;

pub use caller::Caller;
pub use handles::HandleId;
pub use nodes::NodeId;
pub use passthrough::Passthrough;

/// The error of every operation: what the kernel is told, and nothing else.
pub type Errno = rustix::io::Errno;

/// What an operation answers.
pub type Result<T> = std::result::Result<T, Errno>;
