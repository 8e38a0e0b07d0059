//! The FUSE wire protocol of Linux: requests, replies, the handshake and a session loop.
//!
//! ```text
//! kernel ── device ── session ── request ──▶ Filesystem::serve ──▶ reply ── device
//!           bytes     threads    a value                           one answer
//! ```
//!
//! Architecture Invariant: this crate knows no filesystem. It turns bytes into values
//! and values into bytes, and says nothing about what an operation should do.
//!
//! Architecture Invariant: a request is parsed with every length checked; the
//! parser is a function from bytes to a value and works without `/dev/fuse`.
//!
//! Architecture Invariant: every request that somebody waits for is answered exactly
//! once: [`Reply`] is consumed by answering and answers EIO when it is dropped.

pub mod abi;
pub mod device;
mod fusermount;
pub mod mount;
mod pages;
mod readers;
pub mod reply;
pub mod request;
pub mod session;
mod uring;

pub use device::{BackingId, Device};
pub use fusermount::readable_before;
pub use reply::{Entry, Listing, Name, Opened, Reply};
pub use request::{Operation, Request, SetTime, Setattr};
pub use session::{Filesystem, Offer, Session, SessionError, Wanted};
