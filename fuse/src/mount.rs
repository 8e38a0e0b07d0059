//! Attaching a connection to a directory and taking it off again.
//!
//! Root mounts with mount(2) itself; everybody else needs the set-uid helper
//! fusermount3 of libfuse, which mounts and hands the device over on a socket.

use std::ffi::{CString, OsStr};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};

use crate::device::Device;

/// The helper's name; looked up in `PATH`.
const HELPER: &str = "fusermount3";

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

/// Mounts as an ordinary user, through fusermount3.
///
/// # Errors
/// That the helper is missing (with the package's name), or what it said.
pub fn as_user(on: &Path, what: &What<'_>) -> Result<Device> {
    // The helper inherits its end, so that one must not close on exec.
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
    // A comma or backslash in a name would end the option.
    let source = what.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut options = vec![
        format!("fsname={source}"),
        format!("subtype={}", what.subtype),
    ];
    options.extend_from_slice(what.options);
    let number = theirs.as_raw_fd().to_string();
    let options = options.join(",");
    let [flag, options, end] = ["-o", &options, "--"].map(OsStr::new);
    let refused = helper(&[flag, options, end, on.as_os_str()], Some(&number))?;
    if let Some(said) = refused {
        bail!("mount on {}: {said}", on.display());
    }
    drop(theirs);
    Ok(Device::from(receive_descriptor(&ours)?))
}

/// Unmounts. When files are in use, takes the mount out of sight and leaves it to its
/// users, who are served until they close them; returns whether that was so.
///
/// # Errors
/// What umount2(2) or, for an ordinary user, fusermount3 said.
pub fn detach(mountpoint: &Path) -> Result<bool> {
    match unmount(mountpoint, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(false),
        // No mount point any more: somebody else was faster.
        Err(Errno::INVAL) => Ok(false),
        Err(Errno::BUSY) => {
            unmount(mountpoint, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
            Ok(true)
        }
        Err(Errno::PERM) => detach_as_user(mountpoint),
        Err(error) => Err(error.into()),
    }
}

/// The same through fusermount3, which has one exit code for every trouble. With
/// `LC_ALL=C` its words are those of strerror(3) and of its own source.
fn detach_as_user(mountpoint: &Path) -> Result<bool> {
    let on = mountpoint.as_os_str();
    let [unmount, lazily, end] = ["-u", "-z", "--"].map(OsStr::new);
    match helper(&[unmount, end, on], None)? {
        None => Ok(false),
        Some(said) if said.contains("Device or resource busy") => {
            match helper(&[unmount, lazily, end, on], None)? {
                None => Ok(true),
                Some(said) => bail!("{said}"),
            }
        }
        // No mount point any more: somebody else was faster.
        Some(said) if said.contains("not found in") => Ok(false),
        Some(said) => bail!("{said}"),
    }
}

/// Runs fusermount3 to its end and returns what it said if it refused. It answers at once
/// or not at all: what it waits for is mount(2) on a directory that was just looked at.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place of this crate that starts a program, with its command line in the error"
)]
fn helper(arguments: &[&OsStr], socket: Option<&str>) -> Result<Option<String>> {
    let mut command = Command::new(HELPER);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env("LC_ALL", "C");
    if let Some(number) = socket {
        command.env("_FUSE_COMMFD", number);
    }
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{HELPER} is missing, which mounts for ordinary users: install the package fuse3")
        }
        output => output.with_context(|| format!("{command:?}"))?,
    };
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Ok(Some(match said.trim() {
        "" => format!("{command:?}: {}", output.status),
        // It begins with its own name.
        said => said.to_owned(),
    }))
}

/// Takes the device off the socket that the helper sent it on.
fn receive_descriptor(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .with_context(|| format!("receive the device from {HELPER}"))?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .with_context(|| format!("{HELPER} sent no descriptor"))
}
