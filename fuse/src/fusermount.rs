//! fusermount3 of libfuse, the set-uid program that mounts for ordinary users.
//!
//! It comes from another package and is trusted no further than a server is: each wait
//! for it has a deadline.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{IoSliceMut, Read, Seek};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
    recvmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The program's name; looked up in `PATH`.
const PROGRAM: &str = "fusermount3";

/// Mounts with these options and returns the device, which the program sends on a socket
/// that it inherits. A program that is still there after `patience` is killed.
pub(crate) fn mount(on: &Path, options: &str, patience: Duration) -> Result<OwnedFd> {
    let deadline = Instant::now() + patience;
    // It inherits its end, so that one must not close on exec.
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )?;
    fcntl_setfd(&ours, FdFlags::CLOEXEC)?;
    let socket = theirs.as_raw_fd().to_string();
    let [flag, options, end] = ["-o", options, "--"].map(OsStr::new);
    let mut run = Run::start(&[flag, options, end, on.as_os_str()], Some(&socket))?;
    drop(theirs);
    match run.wait(deadline)? {
        Some(End::Done) => {}
        Some(End::Refused(said)) => bail!("mount on {}: {said}", on.display()),
        None => {
            run.child.kill()?;
            bail!("{:?} did not end in {patience:?}", run.command);
        }
    }
    if !readable_before(&ours, deadline)? {
        bail!("{:?} ended and sent no device in {patience:?}", run.command);
    }
    receive_descriptor(&ours)
}

/// What became of an unmount.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unmounted {
    Yes,
    /// Files are in use.
    Busy,
    /// There was no mount.
    WasNot,
}

/// Unmounts; `lazily` although files are in use.
///
/// A program that is still there after `patience` is left alone: it may be waiting for
/// data that are being written.
pub(crate) fn unmount(mountpoint: &Path, lazily: bool, patience: Duration) -> Result<Unmounted> {
    let mut arguments = vec![OsStr::new("-u")];
    if lazily {
        arguments.push(OsStr::new("-z"));
    }
    arguments.extend([OsStr::new("--"), mountpoint.as_os_str()]);
    let mut run = Run::start(&arguments, None)?;
    match run.wait(Instant::now() + patience)? {
        None => bail!("{:?} did not end in {patience:?}", run.command),
        Some(End::Done) => Ok(Unmounted::Yes),
        // One exit code stands for every trouble. Under LC_ALL=C the words are those of
        // strerror(3) and of its own source.
        Some(End::Refused(said)) if said.contains("Device or resource busy") => Ok(Unmounted::Busy),
        Some(End::Refused(said)) if said.contains("not found in") => Ok(Unmounted::WasNot),
        Some(End::Refused(said)) => bail!("{said}"),
    }
}

enum End {
    Done,
    /// In its own words.
    Refused(String),
}

/// The program at work.
struct Run {
    command: Command,
    child: Child,
    /// What it complains of: a file, since a pipe may be held open by others.
    said: File,
}

impl Run {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place of this crate that starts a program, with its command line in the error"
    )]
    fn start(arguments: &[&OsStr], socket: Option<&str>) -> Result<Self> {
        let said = File::from(memfd_create(PROGRAM, MemfdFlags::CLOEXEC)?);
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.try_clone()?);
        if let Some(number) = socket {
            command.env("_FUSE_COMMFD", number);
        }
        match command.spawn() {
            Ok(child) => Ok(Run {
                command,
                child,
                said,
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "{PROGRAM} is missing, which mounts for ordinary users: install the package fuse3"
            ),
            Err(error) => Err(error).with_context(|| format!("{command:?}")),
        }
    }

    /// Its end, or nothing if that does not come before the deadline.
    fn wait(&mut self, deadline: Instant) -> Result<Option<End>> {
        let end = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        if !readable_before(&end, deadline)? {
            return Ok(None);
        }
        let status = self.child.wait()?;
        if status.success() {
            return Ok(Some(End::Done));
        }
        let mut said = String::new();
        self.said.rewind()?;
        self.said.read_to_string(&mut said)?;
        Ok(Some(End::Refused(match said.trim() {
            "" => format!("{:?}: {status}", self.command),
            // It begins with its own name.
            said => said.to_owned(),
        })))
    }
}

/// Takes the device off the socket that the program sent it on.
fn receive_descriptor(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut byte)];
    recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .with_context(|| format!("receive the device from {PROGRAM}"))?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .with_context(|| format!("{PROGRAM} sent no descriptor"))
}

/// Whether there is something to read, or never will be, before the deadline.
///
/// # Errors
/// Any error of poll(2) but EINTR.
pub fn readable_before(fd: impl AsFd, deadline: Instant) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}
