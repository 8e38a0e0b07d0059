//! Attaching a connection to a directory and taking it off again.
//!
//! Root mounts with mount(2) itself; everybody else needs fusermount3.

use std::ffi::CString;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::device::Device;
use crate::fusermount::{self, Unmounted};

/// What is mounted, in the words of mount(8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct What<'a> {
    /// What mount(8) shows as the source.
    pub source: &'a str,
    /// What follows `fuse.` in the type that mount(8) shows.
    pub subtype: &'a str,
    /// Options of the FUSE filesystem type such as `max_read=4096`, and, for the
    /// helper, flags by their names.
    pub options: &'a [String],
}

/// Mounts as root: all users come in, and the kernel checks their permissions.
///
/// # Errors
/// What mount(2) says, with the mount point's name.
pub fn as_root(device: &Device, on: &Path, what: &What<'_>, flags: MountFlags) -> Result<()> {
    let fd = device.as_fd().as_raw_fd();
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let mut data = format!(
        "fd={fd},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        user.as_raw(),
        group.as_raw()
    );
    for option in what.options {
        data.push(',');
        data.push_str(option);
    }
    let data = CString::new(data).context("mount options")?;
    let kind = format!("fuse.{}", what.subtype);
    mount(what.source, on, kind.as_str(), flags, data.as_c_str())
        .with_context(|| format!("mount(2) on {}", on.display()))
}

/// Mounts as an ordinary user, through fusermount3, which has `patience` for it.
///
/// # Errors
/// That the program is missing (with the package's name), what it said, or that it did
/// not come to an end.
pub fn as_user(on: &Path, what: &What<'_>, patience: Duration) -> Result<Device> {
    // A comma or backslash in a name would end the option.
    let source = what.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = vec![
        format!("fsname={source}"),
        format!("subtype={}", what.subtype),
    ];
    options.extend_from_slice(what.options);
    let device = fusermount::mount(on, &options.join(","), patience)?;
    Ok(Device::from(device))
}

/// Unmounts. When files are in use, takes the mount out of sight and leaves it to its
/// users, who are served until they close them; returns whether that was so.
///
/// # Errors
/// What umount2(2) said or, for an ordinary user, fusermount3, which has `patience` for
/// each of the two.
pub fn detach(mountpoint: &Path, patience: Duration) -> Result<bool> {
    match unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(false),
        // No mount point any more: somebody else was faster.
        Err(Errno::INVAL) => Ok(false),
        Err(Errno::BUSY) => {
            unmount(mountpoint, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
            Ok(true)
        }
        Err(Errno::PERM) => match fusermount::unmount(mountpoint, false, patience)? {
            Unmounted::Busy => {
                fusermount::unmount(mountpoint, true, patience)?;
                Ok(true)
            }
            Unmounted::Yes | Unmounted::WasNot => Ok(false),
        },
        Err(error) => Err(error.into()),
    }
}
