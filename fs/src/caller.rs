//! Creating files in the name of the process that asked.
//!
//! The server runs as root, and what it creates must belong to the caller from the
//! first instant: chown(2) afterwards would leave a root-owned file behind when the
//! power goes between the two calls. So the thread takes the caller's filesystem ids
//! for the one system call.
//!
//! Taking them also drops the filesystem capabilities (capabilities(7)), and the
//! server has the caller's user and group but not the supplementary groups, so a
//! directory that is writable through one of those would be refused. The kernel has
//! already checked the caller (`default_permissions`), hence the capabilities are
//! raised again for the call.

use std::cell::OnceCell;

use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use crate::{Result, sys};

/// The user and group of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

thread_local! {
    /// The capabilities of this thread before it first changed its ids.
    static FULL: OnceCell<CapabilitySets> = const { OnceCell::new() };
}

impl Caller {
    /// The superuser.
    pub const ROOT: Caller = Caller { uid: 0, gid: 0 };

    /// Runs `create` so that what it creates belongs to this caller.
    ///
    /// A server that is not root creates everything as itself, for it can do nothing
    /// else; the kernel lets only its own user in.
    ///
    /// # Errors
    /// Those of `create`, and of capset(2).
    pub fn creating<T>(self, create: impl FnOnce() -> Result<T>) -> Result<T> {
        if self == Caller::ROOT || !rustix::process::geteuid().is_root() {
            return create();
        }
        let _restore = TakenIds::take(self)?;
        create()
    }
}

/// Gives the thread its own ids back when dropped, also when `create` panics.
struct TakenIds;

impl TakenIds {
    fn take(caller: Caller) -> Result<Self> {
        let full = FULL.with(|cell| match cell.get() {
            Some(sets) => Ok(*sets),
            None => capabilities(None).map(|sets| *cell.get_or_init(|| sets)),
        })?;
        // The group first: without the superuser's id it could not be changed.
        sys::set_thread_fsgid(caller.gid);
        sys::set_thread_fsuid(caller.uid);
        let taken = TakenIds;
        set_capabilities(None, full)?;
        Ok(taken)
    }
}

impl Drop for TakenIds {
    fn drop(&mut self) {
        sys::set_thread_fsuid(0);
        sys::set_thread_fsgid(0);
    }
}
