//! Attaching a FUSE connection to a directory.
//!
//! Root mounts with mount(2) itself. fuser could do it, but it unmounts the mount point
//! once more when a session has ended (its test whether the mount still stands is the
//! wrong way round), which would take down whatever was there before or came after.
//! Everybody else needs fusermount3, which fuser calls.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use fuser::{MountOption, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::adapter::Adapter;
use crate::options::MountOptions;

/// The type that mount(8) shows is `fuse.` and this.
const SUBTYPE: &str = "plugpull-fs";

/// Mounts as root: all users come in and the kernel checks their permissions, for this
/// server's own rights would open everything.
pub(crate) fn mount_as_root(
    adapter: Adapter,
    source: &Path,
    mountpoint: &Path,
    threads: usize,
    options: &MountOptions,
) -> Result<Session<Adapter>> {
    let device: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .context("open /dev/fuse (is the kernel module `fuse` loaded?)")?
        .into();
    let name = source_name(source, options);
    let kind = format!("fuse.{}", subtype(options));
    let data = kernel_data(&device, options);
    let data = std::ffi::CString::new(data).context("mount options")?;
    let flags = kernel_flags(&options.to_fuser());
    mount(
        name.as_str(),
        mountpoint,
        kind.as_str(),
        flags,
        data.as_c_str(),
    )
    .with_context(|| format!("mount(2) on {}", mountpoint.display()))?;
    let mut config = fuser::Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    Session::from_fd(adapter, device, SessionACL::All, config).map_err(|error| {
        // Without a server behind it the mount would only hang those who look at it.
        if let Err(error) = unmount(mountpoint, UnmountFlags::DETACH) {
            tracing::error!(%error, mountpoint = %mountpoint.display(), "left behind");
        }
        anyhow::Error::from(error).context("FUSE handshake with the kernel")
    })
}

/// Mounts as an ordinary user, through fusermount3.
pub(crate) fn mount_as_user(
    adapter: Adapter,
    source: &Path,
    mountpoint: &Path,
    threads: usize,
    options: &MountOptions,
) -> Result<Session<Adapter>> {
    let mut config = fuser::Config::default();
    config.n_threads = Some(threads);
    config.mount_options = options.to_fuser();
    config.mount_options.extend([
        MountOption::FSName(source_name(source, options)),
        MountOption::Subtype(subtype(options).to_owned()),
    ]);
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    let permissions = MountOption::DefaultPermissions;
    if options.allow_other && !config.mount_options.contains(&permissions) {
        config.mount_options.push(permissions);
    }
    Session::new(adapter, mountpoint, &config)
        .with_context(|| format!("mount on {} with fusermount3", mountpoint.display()))
}

/// Unmounts; when files are in use, takes the mount out of sight and leaves it to its
/// users, who are served until they close them.
pub(crate) fn detach(mountpoint: &Path) -> rustix::io::Result<()> {
    match unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Err(Errno::BUSY) => {
            tracing::warn!("in use: serving open files until they are closed");
            unmount(mountpoint, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
        }
        unmounted => unmounted,
    }
}

fn source_name(source: &Path, options: &MountOptions) -> String {
    match &options.source_name {
        Some(name) => name.clone(),
        None => source.to_string_lossy().into_owned(),
    }
}

fn subtype(options: &MountOptions) -> &str {
    options.subtype.as_deref().unwrap_or(SUBTYPE)
}

/// The option string of the FUSE filesystem type (Documentation/filesystems/fuse.rst).
fn kernel_data(device: &OwnedFd, options: &MountOptions) -> String {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    for option in options.to_fuser() {
        if let MountOption::CUSTOM(text) = option {
            data.push(',');
            data.push_str(&text);
        }
    }
    data
}

/// The flags of mount(2). Devices and set-id bits count only where they are asked for,
/// as with every FUSE mount.
fn kernel_flags(options: &[MountOption]) -> MountFlags {
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    for option in options {
        match option {
            MountOption::RO => flags |= MountFlags::RDONLY,
            MountOption::Dev => flags -= MountFlags::NODEV,
            MountOption::Suid => flags -= MountFlags::NOSUID,
            MountOption::NoExec => flags |= MountFlags::NOEXEC,
            MountOption::NoAtime => flags |= MountFlags::NOATIME,
            MountOption::Sync => flags |= MountFlags::SYNCHRONOUS,
            MountOption::DirSync => flags |= MountFlags::DIRSYNC,
            _ => {}
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_nosuid_and_nodev_unless_asked() {
        let default = MountFlags::NODEV | MountFlags::NOSUID;
        assert_eq!(kernel_flags(&[]), default);
        assert_eq!(
            kernel_flags(&[MountOption::Dev, MountOption::Suid, MountOption::RO]),
            MountFlags::RDONLY
        );
        assert_eq!(
            kernel_flags(&[MountOption::NoDev, MountOption::NoExec]),
            default | MountFlags::NOEXEC
        );
    }
}
