//! Follows a command to its end: one poll over its descriptor and its streams,
//! with the deadline as the timeout.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::{Child, Cmd, Input, Output, RunError, spawn};

/// What the parent holds of a running command's streams.
struct Streams<'a> {
    stdin: Option<File>,
    unsent: Vec<u8>,
    stdout: Option<File>,
    out: Vec<u8>,
    stderr: Option<File>,
    err: Vec<u8>,
    /// How much of `err` has been handed to `on_line`.
    told: usize,
    on_line: &'a mut dyn FnMut(&str),
}

pub(super) fn run(
    mut cmd: Cmd,
    command: &str,
    deadline: Duration,
    on_line: &mut dyn FnMut(&str),
) -> Result<Output, RunError> {
    let until = Instant::now() + deadline;
    let start_error = |source| RunError::Start {
        command: command.to_owned(),
        source,
    };
    let follow_error = |source| RunError::Follow {
        command: command.to_owned(),
        source,
    };
    let unsent = match &mut cmd.stdin {
        Input::Bytes(bytes) => mem::take(bytes),
        Input::Null | Input::File(_) => Vec::new(),
    };
    let own_group = cmd.own_group;
    let mut inner = spawn::from_this_thread(cmd).map_err(start_error)?;
    let (stdin, stdout, stderr) = (inner.stdin.take(), inner.stdout.take(), inner.stderr.take());
    // From here on the guard kills it on every way out.
    let mut child = Child::new(inner, own_group, command.to_owned()).map_err(start_error)?;
    let mut streams = Streams {
        stdin: stdin.map(nonblocking).transpose().map_err(follow_error)?,
        unsent,
        stdout: stdout.map(nonblocking).transpose().map_err(follow_error)?,
        out: Vec::new(),
        stderr: stderr.map(nonblocking).transpose().map_err(follow_error)?,
        err: Vec::new(),
        told: 0,
        on_line,
    };
    loop {
        streams.transfer().map_err(follow_error)?;
        if let Some(status) = child.try_wait()? {
            // What it wrote before it ended is in the pipes by now. A daemon it
            // left behind may hold them open for ever, so end-of-file is not
            // waited for.
            streams.transfer().map_err(follow_error)?;
            streams.tell(true);
            return Ok(Output {
                stdout: streams.out,
                stderr: streams.err,
                status,
            });
        }
        if !streams.wait(&child, until).map_err(follow_error)? {
            child.kill()?;
            streams.transfer().map_err(follow_error)?;
            streams.tell(true);
            return Err(RunError::Deadline {
                command: command.to_owned(),
                deadline,
                stderr: streams.err,
            });
        }
    }
}

impl Streams<'_> {
    /// Moves what can be moved without blocking.
    fn transfer(&mut self) -> io::Result<()> {
        if self
            .stdin
            .as_mut()
            .is_some_and(|pipe| feed(pipe, &mut self.unsent))
        {
            self.stdin = None;
        }
        drain(&mut self.stdout, &mut self.out)?;
        drain(&mut self.stderr, &mut self.err)?;
        self.tell(false);
        Ok(())
    }

    /// Hands over whole new lines of standard error; at the end also an
    /// unfinished one. A carriage return ends a line: that is how programs
    /// redraw a progress bar.
    fn tell(&mut self, at_end: bool) {
        let new = &self.err[self.told..];
        let whole = match new.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')) {
            _ if at_end => new.len(),
            Some(end) => end + 1,
            None => 0,
        };
        for line in new[..whole].split(|byte| matches!(byte, b'\n' | b'\r')) {
            if !line.is_empty() {
                (self.on_line)(&String::from_utf8_lossy(line));
            }
        }
        self.told += whole;
    }

    /// Waits until something can be done; false when `until` has passed.
    fn wait(&self, child: &Child, until: Instant) -> io::Result<bool> {
        let mut fds = vec![PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN)];
        fds.extend(
            self.stdin
                .iter()
                .map(|pipe| PollFd::new(pipe, PollFlags::OUT)),
        );
        fds.extend(
            self.stdout
                .iter()
                .chain(&self.stderr)
                .map(|pipe| PollFd::new(pipe, PollFlags::IN)),
        );
        poll_until(&mut fds, until)
    }
}

/// Polls until one of `fds` is ready or `until` has passed; then false.
pub(super) fn poll_until(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(fds, Some(&timeout)) {
            Ok(0) if !left.is_zero() => {}
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn nonblocking(pipe: impl Into<OwnedFd>) -> io::Result<File> {
    let file = File::from(pipe.into());
    let flags = fcntl_getfl(file.as_fd())?;
    fcntl_setfl(file.as_fd(), flags | OFlags::NONBLOCK)?;
    Ok(file)
}

/// Writes what the pipe takes; true when it is to be closed, because all is
/// written or the command reads no more (which is its own business: its status
/// tells whether it minded).
fn feed(pipe: &mut File, unsent: &mut Vec<u8>) -> bool {
    while !unsent.is_empty() {
        match pipe.write(unsent) {
            Ok(sent) => drop(unsent.drain(..sent)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
    true
}

/// Reads what is there; closes the pipe at end-of-file.
fn drain(pipe: &mut Option<File>, into: &mut Vec<u8>) -> io::Result<()> {
    let Some(file) = pipe else { return Ok(()) };
    let mut buffer = [0; 16 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => {
                *pipe = None;
                return Ok(());
            }
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
