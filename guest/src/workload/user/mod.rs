//! A program that somebody else wrote: it is run and heard, what it left is
//! handed to its check or looked at file by file.

#[cfg(test)]
mod clients;
mod files;
mod line;
mod socket;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use plugpull_protocol::{
    Promise,
    workload::user::{
        Call, Ended, MARK_START, SOCKET_VARIABLE, SocketRules, UserRan, UserRequest, UserSeen,
    },
};

use self::socket::Socket;
use super::Promises;
use crate::process::{Process, Spec};

/// How often a running program is asked whether the socket has refused it.
const LOOK: Duration = Duration::from_millis(100);
/// How long a program that was refused may take to say so itself.
const AFTER_REFUSAL: Duration = Duration::from_secs(3);

/// Carry out a request; the promise socket is made in `run_dir`, which is in
/// memory.
pub(super) fn run(
    request: UserRequest,
    promises: &dyn Promises,
    run_dir: &Path,
) -> Result<UserSeen> {
    match request {
        UserRequest::Run {
            dir,
            program,
            socket,
        } => {
            make_durable(Path::new(&dir))?;
            promises.record(Promise::Mark {
                text: MARK_START.into(),
            })?;
            let ran = workload(program, socket, promises, &run_dir.join("promises"))?;
            Ok(UserSeen::Ran(Box::new(ran)))
        }
        UserRequest::Ledger { path, text, first } => {
            write_ledger(Path::new(&path), &text, first)?;
            Ok(UserSeen::Written)
        }
        UserRequest::Check { program } => {
            let timeout = Duration::from_millis(program.timeout_ms);
            let ended = match start(program, None) {
                Ok(process) => to_its_end(process, timeout, || false),
                Err(not_started) => not_started,
            };
            Ok(UserSeen::Checked { ended })
        }
        UserRequest::Files { dir, keys } => {
            let look = |key: String| Ok((key.clone(), files::look(Path::new(&dir), &key)?));
            let files = keys.into_iter().map(look);
            Ok(UserSeen::Files {
                files: files.collect::<Result<_>>()?,
            })
        }
    }
}

/// A new directory that no power cut takes away: what a program does below it
/// is then its own affair.
fn make_durable(dir: &Path) -> Result<()> {
    let parent = dir
        .parent()
        .context("the program's directory is the root")?;
    fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
    for made in [dir, parent] {
        let synced = File::open(made).and_then(|made| made.sync_all());
        synced.with_context(|| format!("sync {}", made.display()))?;
    }
    Ok(())
}

fn workload(
    program: Call,
    rules: SocketRules,
    promises: &dyn Promises,
    at: &Path,
) -> Result<UserRan> {
    let (ended, heard) = socket::listening(at, rules, promises, |socket: &Socket<'_>| {
        let timeout = Duration::from_millis(program.timeout_ms);
        Ok(match start(program, Some(at)) {
            Ok(process) => to_its_end(process, timeout, || socket.refused().is_some()),
            Err(not_started) => not_started,
        })
    })?;
    Ok(UserRan {
        ended,
        connections: heard.connections,
        refused: heard.refused,
    })
}

/// Start a program. That it cannot be is an observation: its author has to
/// read it.
fn start(program: Call, socket: Option<&Path>) -> Result<Process, Ended> {
    let mut spec = Spec::new(&program.argv).dir(PathBuf::from(&program.cwd));
    if let Some(socket) = socket {
        spec = spec.env(SOCKET_VARIABLE, socket);
    }
    spec.spawn().map_err(|error| Ended::NotStarted {
        why: format!("{error:#}"),
    })
}

/// Wait for a program's end. One that was refused is given a moment to say so.
fn to_its_end(mut process: Process, timeout: Duration, refused: impl Fn() -> bool) -> Ended {
    let started = Instant::now();
    let mut deadline = started + timeout;
    let mut spoilt = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // What cannot be watched is killed below, at once.
        if process.exits_within(left.min(LOOK)).unwrap_or(true) || left.is_zero() {
            break;
        }
        if !spoilt && refused() {
            spoilt = true;
            deadline = deadline.min(Instant::now() + AFTER_REFUSAL);
        }
    }
    match process.wait(Duration::ZERO) {
        Ok(exited) => Ended::Exited(exited),
        Err(_) => Ended::Hung {
            after_ms: started.elapsed().as_millis() as u64,
            said: process.kill_and_hear(),
        },
    }
}

fn write_ledger(path: &Path, text: &str, first: bool) -> Result<()> {
    let doing = || format!("write the ledger {}", path.display());
    let mut options = OpenOptions::new();
    options
        .create(true)
        .truncate(first)
        .append(!first)
        .write(true);
    let mut file = options.open(path).with_context(doing)?;
    file.write_all(text.as_bytes()).with_context(doing)
}
