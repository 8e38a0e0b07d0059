//! The one place that starts processes on the host.
//!
//! Every command has a deadline, never shares the caller's standard streams,
//! dies with us, and shows its whole command line when it fails. Short
//! commands go through [`Cmd::run`]; processes that outlive the call (a guest,
//! an `apt-get` nobody waits for) through [`Cmd::spawn`], whose [`Child`]
//! kills and reaps on drop.
//!
//! The parent-death signal (prctl(2), `PR_SET_PDEATHSIG`) fires when the
//! *thread* that forked exits, not when the process does. So [`Cmd::spawn`]
//! forks from one thread that lives as long as this process; [`Cmd::run`] may
//! fork from its caller's, which waits until the command has ended. The signal
//! reaches the direct child only: a command that forks helpers of its own
//! wants [`Cmd::own_group`], so that a deadline takes all of them.

mod child;
mod namespace;
mod spawn;
mod stream;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

pub use child::Child;
pub use namespace::enter_private_mounts;

/// How much of a failed command's standard error its message shows.
const TAIL_LINES: usize = 20;

/// A command to be started: program, arguments, environment, streams.
#[derive(Debug)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    stdin: Input,
    stdout: Sink,
    stderr: Sink,
    own_group: bool,
    inherited: Vec<OwnedFd>,
}

/// Where a command's standard input comes from.
#[derive(Debug)]
enum Input {
    Null,
    Bytes(Vec<u8>),
    File(File),
}

/// Where one of the output streams goes. [`Cmd::run`] captures a stream that
/// nobody redirected, [`Cmd::spawn`] drops it.
#[derive(Debug)]
enum Sink {
    Default,
    File(File),
}

/// What a finished command left behind. A stream redirected to a file is empty.
#[derive(Debug, Clone)]
pub struct Output {
    /// Captured standard output.
    pub stdout: Vec<u8>,
    /// Captured standard error.
    pub stderr: Vec<u8>,
    /// How the command ended.
    pub status: ExitStatus,
}

impl Output {
    /// Standard output as text, invalid UTF-8 replaced.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text, invalid UTF-8 replaced.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Why a command gave no result. Each message holds the whole command line,
/// quoted so that it can be pasted into a shell.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program could not be started at all.
    #[error("cannot start: {command}")]
    Start {
        /// The quoted command line.
        command: String,
        /// Why not; `NotFound` when there is no such program.
        source: io::Error,
    },
    /// It ran and did not end with status 0.
    #[error("{status}: {command}{}", indented_tail(&output.stderr))]
    Failed {
        /// The quoted command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Everything it said.
        output: Box<Output>,
    },
    /// It was still running at its deadline and has been killed.
    #[error(
        "killed, not finished after {deadline:?}: {command}{}",
        indented_tail(stderr)
    )]
    Deadline {
        /// The quoted command line.
        command: String,
        /// The time it was given.
        deadline: Duration,
        /// What it had said on standard error.
        stderr: Vec<u8>,
    },
    /// A system call on its streams or its descriptor failed.
    #[error("cannot follow: {command}")]
    Follow {
        /// The quoted command line.
        command: String,
        /// What failed.
        source: io::Error,
    },
}

impl RunError {
    /// Whether the program is not there at all.
    pub fn is_not_found(&self) -> bool {
        matches!(self, RunError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// The failed or killed command's standard error, empty for other errors.
    pub fn stderr_text(&self) -> String {
        match self {
            RunError::Failed { output, .. } => output.stderr_text(),
            RunError::Deadline { stderr, .. } => String::from_utf8_lossy(stderr).into_owned(),
            RunError::Start { .. } | RunError::Follow { .. } => String::new(),
        }
    }
}

impl Cmd {
    /// A command with no arguments, an inherited environment, `/dev/null` as
    /// its standard input, in the caller's process group.
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        Cmd {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            stdin: Input::Null,
            stdout: Sink::Default,
            stderr: Sink::Default,
            own_group: false,
            inherited: Vec::new(),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Cmd {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets one environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Cmd {
        self.env
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in `dir`.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Cmd {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Feeds these bytes to its standard input ([`Cmd::run`] only).
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Cmd {
        self.stdin = Input::Bytes(bytes.into());
        self
    }

    /// Connects its standard input to an open file.
    #[must_use]
    pub fn stdin_file(mut self, file: File) -> Cmd {
        self.stdin = Input::File(file);
        self
    }

    /// Sends its standard output to an open file.
    #[must_use]
    pub fn stdout_file(mut self, file: File) -> Cmd {
        self.stdout = Sink::File(file);
        self
    }

    /// Sends its standard error to an open file.
    #[must_use]
    pub fn stderr_file(mut self, file: File) -> Cmd {
        self.stderr = Sink::File(file);
        self
    }

    /// Gives it a process group of its own, which is killed as one. A terminal's
    /// Ctrl-C does not reach that group, but the parent-death signal reaches its
    /// leader.
    #[must_use]
    pub fn own_group(mut self) -> Cmd {
        self.own_group = true;
        self
    }

    /// Lets the child have this descriptor, under the same number. The parent's
    /// copy is closed once the child runs; no other child ever sees it.
    #[must_use]
    pub fn inherit(mut self, fd: OwnedFd) -> Cmd {
        self.inherited.push(fd);
        self
    }

    /// The command line, with changed environment, quoted for a shell.
    pub fn line(&self) -> String {
        let env = self.env.iter().map(|(key, value)| {
            format!(
                "{}={}",
                key.to_string_lossy(),
                quote(&value.to_string_lossy())
            )
        });
        let words = std::iter::once(&self.program).chain(&self.args);
        let words = words.map(|word| quote(&word.to_string_lossy()));
        env.chain(words).collect::<Vec<_>>().join(" ")
    }

    /// Runs to the end and returns what it said.
    ///
    /// # Errors
    /// When it cannot be started, ends with a status other than 0, or is not
    /// finished within `deadline`; then it (or its own group) has been killed.
    pub fn run(self, deadline: Duration) -> Result<Output, RunError> {
        self.run_with(deadline, &mut |_line| {})
    }

    /// As [`Cmd::run`], and hands each line of standard error to `on_line` as it
    /// comes, for progress.
    ///
    /// # Errors
    /// As [`Cmd::run`].
    pub fn run_with(
        self,
        deadline: Duration,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Output, RunError> {
        let command = self.line();
        let output = stream::run(self, &command, deadline, on_line)?;
        if output.status.success() {
            return Ok(output);
        }
        Err(RunError::Failed {
            command,
            status: output.status,
            output: Box::new(output),
        })
    }

    /// Starts it and returns at once. Streams that were not given a file are
    /// `/dev/null`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self) -> Result<Child, RunError> {
        let command = self.line();
        if matches!(self.stdin, Input::Bytes(_)) {
            let source = io::Error::new(
                io::ErrorKind::InvalidInput,
                "bytes for standard input need run(), a spawned process takes a file",
            );
            return Err(RunError::Start { command, source });
        }
        spawn::from_long_lived_thread(self)
            .and_then(|(inner, own_group)| Child::new(inner, own_group, command.clone()))
            .map_err(|source| RunError::Start { command, source })
    }
}

/// The last lines of `stderr`, each on a line of its own and indented.
fn indented_tail(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    tail.iter().map(|line| format!("\n    {line}")).collect()
}

/// Quotes a word for a POSIX shell, only where it needs it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
