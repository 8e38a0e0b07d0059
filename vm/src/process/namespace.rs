//! A mount namespace of our own.

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use super::spawn;

/// Moves the calling thread, the threads and the processes that it starts from now on
/// into a mount namespace of their own (mount_namespaces(7)). What they mount nobody
/// else sees, and it goes when the last of them does, however they end.
///
/// # Errors
/// When we may not (it takes root), or when processes have been [spawned] before: the
/// thread that starts them would stay outside.
///
/// [spawned]: super::Cmd::spawn
#[expect(unsafe_code, reason = "unshare(2) of a thread's mount namespace")]
pub fn enter_private_mounts() -> Result<()> {
    ensure!(
        !spawn::has_begun(),
        "processes have been started in the mount namespace that is to be left"
    );
    // SAFETY: CLONE_FILES is not among the flags, so no descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .context("unshare(2) the mount namespace (are we root?)")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("make all mounts private")
}
