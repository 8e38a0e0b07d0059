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

//!
//! The umask is applied by the lower filesystem, from the thread's own umask, because
//! only it knows whether the directory has a default ACL, which takes the umask's place
//! (acl(5), "Object creation and default ACLs").

use std::cell::Cell;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::process::umask;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::{Result, sys};

/// In whose name something is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The umask of the call.
    pub umask: u32,
    /// The thread that asks, by its number in this server's namespace; 0 for none.
    pub pid: u32,
}

/// The capabilities of the process, before any thread first changed its own.
static FULL: OnceLock<CapabilitySets> = OnceLock::new();

thread_local! {
    /// What this thread has of `CAP_FSETID`.
    static FSETID: Cell<Fsetid> = const { Cell::new(Fsetid::Unknown) };
    /// The umask that this thread has given itself.
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a thread has of `CAP_FSETID`, if the process has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fsetid {
    /// What the thread had that started it.
    Unknown,
    Held,
    Lowered,
}

impl Caller {
    /// The superuser with an empty umask.
    pub const ROOT: Caller = Caller {
        uid: 0,
        gid: 0,
        umask: 0,
        pid: 0,
    };

    /// Runs `create` so that what it creates belongs to this caller and has passed its
    /// umask.
    ///
    /// A server that is not root creates everything as itself, for it can do nothing
    /// else; the kernel lets only its own user in.
    ///
    /// # Errors
    /// Those of `create`, of unshare(2) and of capset(2).
    pub fn creating<T>(self, create: impl FnOnce() -> Result<T>) -> Result<T> {
        take_umask(self.umask)?;
        let _ids = TakenIds::take(self)?;
        create()
    }
}

/// Runs `change` without `CAP_FSETID`, so that the lower filesystem clears set-id bits
/// (inode(7)) as it does for a caller who may not keep them.
///
/// # Errors
/// Those of `change` and of capset(2).
fn without_fsetid<T>(change: impl FnOnce() -> Result<T>) -> Result<T> {
    let full = full_capabilities()?;
    if !full.effective.contains(CapabilitySet::FSETID) {
        return change();
    }
    lower_fsetid(full)?;
    let _full = RestoredCapabilities;
    change()
}

/// Runs `change` without `CAP_FSETID`, and leaves this thread without it: most requests
/// have no use for it, and to put it aside and take it back are two calls of
/// capset(2). Who may have a use for it calls [`raise_fsetid`] first.
///
/// # Errors
/// Those of `change` and of capset(2).
pub(crate) fn lowering_fsetid<T>(change: impl FnOnce() -> Result<T>) -> Result<T> {
    if FSETID.get() != Fsetid::Lowered {
        let full = full_capabilities()?;
        if full.effective.contains(CapabilitySet::FSETID) {
            lower_fsetid(full)?;
        }
    }
    change()
}

/// Takes back what [`lowering_fsetid`] has put aside.
///
/// # Errors
/// Those of capset(2).
pub(crate) fn raise_fsetid() -> Result<()> {
    if FSETID.get() != Fsetid::Held {
        let full = full_capabilities()?;
        if full.effective.contains(CapabilitySet::FSETID) {
            set_capabilities(None, full)?;
        }
        FSETID.set(Fsetid::Held);
    }
    Ok(())
}

fn lower_fsetid(full: CapabilitySets) -> Result<()> {
    let without = CapabilitySets {
        effective: full.effective - CapabilitySet::FSETID,
        ..full
    };
    set_capabilities(None, without)?;
    FSETID.set(Fsetid::Lowered);
    Ok(())
}

impl Caller {
    /// This caller, unless it is the superuser, who may keep set-id bits.
    pub(crate) fn unless_root(self) -> Option<Self> {
        (self.uid != 0).then_some(self)
    }

    /// Runs `change`, which alters a file of the group `file_gid`, so that the lower
    /// filesystem clears set-id bits as for this caller: one without `CAP_FSETID`, in the
    /// file's group or not (`setattr_should_drop_sgid` in fs/attr.c).
    ///
    /// # Errors
    /// Those of `change` and of capset(2).
    pub(crate) fn clearing_set_id<T>(
        self,
        file_gid: u32,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let _group = rustix::process::geteuid().is_root().then(|| {
            let group = if self.is_in_group(file_gid) {
                file_gid
            } else {
                self.gid
            };
            sys::set_thread_fsgid(group);
            TakenGroup
        });
        without_fsetid(change)
    }

    /// Whether the caller's process is in a group. No supplementary groups arrive with a
    /// request, so they are looked up; a process that is gone is in none.
    fn is_in_group(self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        status.unwrap_or_default().lines().any(|line| {
            line.strip_prefix("Groups:").is_some_and(|groups| {
                groups
                    .split_whitespace()
                    .any(|group| group.parse() == Ok(gid))
            })
        })
    }
}

/// Gives the thread its own group back when dropped.
struct TakenGroup;

impl Drop for TakenGroup {
    fn drop(&mut self) {
        sys::set_thread_fsgid(0);
    }
}

/// The capabilities of this process when no thread has changed anything about its own.
fn full_capabilities() -> Result<CapabilitySets> {
    match FULL.get() {
        Some(sets) => Ok(*sets),
        None => capabilities(None).map(|sets| *FULL.get_or_init(|| sets)),
    }
}

/// Gives the thread its capabilities back when dropped.
struct RestoredCapabilities;

impl Drop for RestoredCapabilities {
    fn drop(&mut self) {
        if let Err(error) = raise_fsetid() {
            // To raise what is permitted never fails; if it did, this thread would
            // refuse what it must not.
            tracing::error!(%error, "cannot take a capability back");
        }
    }
}

/// Gives this thread a umask, for this creation and all that follow until one has
/// another: most callers have the same, and nothing else looks at it.
fn take_umask(mask: u32) -> Result<()> {
    if UMASK.get() == Some(mask) {
        return Ok(());
    }
    if UMASK.get().is_none() {
        // Until now it was the whole process's.
        sys::separate_thread_umask()?;
    }
    umask(Mode::from_raw_mode(mask));
    UMASK.set(Some(mask));
    Ok(())
}

/// Gives the thread its own ids back when dropped.
struct TakenIds;

impl TakenIds {
    fn take(caller: Caller) -> Result<Option<Self>> {
        let is_self = (caller.uid, caller.gid) == (0, 0);
        if is_self || !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let full = full_capabilities()?;
        // The group first: without the superuser's id it could not be changed.
        sys::set_thread_fsgid(caller.gid);
        sys::set_thread_fsuid(caller.uid);
        let taken = TakenIds;
        set_capabilities(None, full)?;
        FSETID.set(Fsetid::Held);
        Ok(Some(taken))
    }
}

impl Drop for TakenIds {
    fn drop(&mut self) {
        sys::set_thread_fsuid(0);
        sys::set_thread_fsgid(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds_fsetid() -> bool {
        let sets = capabilities(None).unwrap();
        sets.effective.contains(CapabilitySet::FSETID)
    }

    #[test]
    fn what_was_lowered_is_raised_where_it_may_count() {
        assert!(holds_fsetid(), "the tests run as root");
        assert_eq!(lowering_fsetid(|| Ok(holds_fsetid())), Ok(false));
        assert!(!holds_fsetid());
        // A thread has what the one had that started it, and knows nothing of that.
        let started = || raise_fsetid().map(|()| holds_fsetid());
        assert_eq!(std::thread::spawn(started).join().unwrap(), Ok(true));
        assert!(!holds_fsetid());
        raise_fsetid().unwrap();
        assert!(holds_fsetid());
        assert_eq!(without_fsetid(|| Ok(holds_fsetid())), Ok(false));
        assert!(holds_fsetid());
    }
}
