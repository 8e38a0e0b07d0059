//! The promise socket: a UNIX stream socket on which a program says what it
//! promises.
//!
//! Each line is answered with `ok` once the host has recorded its place among
//! the disk's requests, or with `error WHY`. After the first error nothing more
//! is recorded on any connection: a ledger with a hole would convict the
//! innocent and acquit the guilty.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::fd::AsFd,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread::Scope,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use plugpull_protocol::Promise;
use plugpull_protocol::workload::user::{LINE_MAX, SocketRules};
use rustix::event::{PollFd, PollFlags, poll};

use super::line::{Said, parse};
use crate::workload::Promises;

/// How long connections of a program that has ended may stay open: only a
/// process that left its group can hold them.
const LEFT_OPEN: Duration = Duration::from_secs(2);

/// What a socket heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Connections made.
    pub(super) connections: u64,
    /// What was refused first.
    pub(super) refused: Option<String>,
}

/// Listen at `path` while `body` runs.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listening<T>(
    path: &Path,
    rules: SocketRules,
    promises: &dyn Promises,
    body: impl FnOnce(&Socket<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<(T, Heard)> {
    let doing = || format!("make the promise socket {}", path.display());
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(doing);
        }
        _ => {}
    }
    let listener = UnixListener::bind(path).with_context(doing)?;
    // Accepting is asked of poll first, so that the end can be waited for too.
    listener.set_nonblocking(true).with_context(doing)?;
    let (stop, stopped) = UnixStream::pair().with_context(doing)?;
    let socket = Socket {
        rules,
        promises,
        state: Mutex::default(),
        changed: Condvar::new(),
    };
    let result = std::thread::scope(|scope| {
        let accepting = scope.spawn(|| {
            let accepted = socket.accept(scope, &listener, &stopped);
            if let Err(error) = &accepted {
                // The program may wait for ever now, and must not pass for one
                // that had nothing to say.
                socket.refuse(format!("{error:#}"));
            }
            accepted
        });
        let result = body(&socket);
        drop(stop);
        // Whoever connected before now is still accepted and heard.
        let accepted = accepting.join();
        socket.hang_up();
        accepted.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        result
    })?;
    let state = socket.state.into_inner();
    let state = state.unwrap_or_else(PoisonError::into_inner);
    Ok((
        result,
        Heard {
            connections: state.connections,
            refused: state.refused,
        },
    ))
}

/// What all connections share.
pub(super) struct Socket<'a> {
    rules: SocketRules,
    promises: &'a dyn Promises,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    connections: u64,
    promises: u64,
    bytes: u64,
    refused: Option<String>,
    /// The open connections, to hang up on them.
    open: Vec<(u64, UnixStream)>,
    over: bool,
}

impl Socket<'_> {
    /// What was refused first, if anything.
    pub(super) fn refused(&self) -> Option<String> {
        self.lock().refused.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        listener: &'scope UnixListener,
        stopped: &UnixStream,
    ) -> anyhow::Result<()> {
        loop {
            let mut fds = [
                PollFd::new(listener, PollFlags::IN),
                PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for connections"),
            }
            let over = !fds[1].revents().is_empty();
            loop {
                match listener.accept() {
                    Ok((stream, _)) => self.welcome(scope, stream)?,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("accept a connection"),
                }
            }
            if over {
                return Ok(());
            }
        }
    }

    fn welcome<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        stream: UnixStream,
    ) -> anyhow::Result<()> {
        stream.set_nonblocking(false)?;
        let number = {
            let mut state = self.lock();
            state.connections += 1;
            let number = state.connections;
            state.open.push((number, stream.try_clone()?));
            number
        };
        let serve = move || {
            self.serve(number, &stream);
            self.lock().open.retain(|(open, _)| *open != number);
            self.changed.notify_all();
        };
        std::thread::Builder::new()
            .name(format!("promises-{number}"))
            .spawn_scoped(scope, serve)
            .context("start a thread for a connection")?;
        Ok(())
    }

    /// Wait for the connections to end by themselves, then end them.
    fn hang_up(&self) {
        let deadline = Instant::now() + LEFT_OPEN;
        let mut state = self.lock();
        while !state.open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.over = true;
        for (_, stream) in &state.open {
            // One that has ended meanwhile needs no ending.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Take lines until the stream ends or one is refused.
    fn serve(&self, number: u64, stream: &UnixStream) {
        let mut begun = HashSet::new();
        let mut from = BufReader::new(stream);
        let mut line = Vec::new();
        for at in 1_u64.. {
            line.clear();
            let most = LINE_MAX as u64 + 1;
            match (&mut from).take(most).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let heard = match line.pop() {
                Some(b'\n') => self.take(&line, number, &mut begun),
                Some(_) if line.len() >= LINE_MAX => Err(format!(
                    "the line is longer than {LINE_MAX} bytes; let a value be a hash of what is long"
                )),
                _ if self.lock().over => return,
                _ => {
                    Err("the connection ended within a line; every line ends with a newline".into())
                }
            };
            // A program that does not wait for the answer, or is gone by now,
            // has promised all the same.
            match heard {
                Ok(()) => drop((&mut &*stream).write_all(b"ok\n")),
                Err(why) => {
                    let why = self.refuse(format!("connection {number}, line {at}: {why}"));
                    drop((&mut &*stream).write_all(format!("error {why}\n").as_bytes()));
                    // What is left unread would take the answer with it
                    // (unix(7): the peer gets ECONNRESET).
                    drop(stream.shutdown(Shutdown::Write));
                    drop(std::io::copy(&mut from, &mut std::io::sink()));
                    return;
                }
            }
        }
    }

    /// Have a line recorded, or say what is wrong with it.
    fn take(&self, line: &[u8], number: u64, begun: &mut HashSet<String>) -> Result<(), String> {
        if let Some(why) = self.refused() {
            return Err(format!("nothing is taken any more, because of {why}"));
        }
        let said = parse(line, self.rules.keys)?;
        self.measure(line.len() as u64 + 1)?;
        let conn = u32::try_from(number).map_err(|_| "too many connections".to_owned())?;
        let promise = match said {
            Said::Begin { key, value } => {
                begun.insert(key.clone());
                Promise::Begin { conn, key, value }
            }
            Said::Ack { key } if begun.contains(&key) => Promise::Ack { conn, key },
            Said::Ack { key } => {
                return Err(format!(
                    "`ack {key}` without a `begin {key}` on this connection"
                ));
            }
            Said::Served { key, value } => Promise::Served { key, value },
            Said::Mark { text } => Promise::Mark { text },
        };
        let recorded = self.promises.record(promise);
        recorded.map_err(|error| format!("the promise was not recorded: {error:#}"))
    }

    fn measure(&self, bytes: u64) -> Result<(), String> {
        let mut state = self.lock();
        state.promises += 1;
        state.bytes += bytes;
        let rules = &self.rules;
        if state.promises <= rules.promises_max && state.bytes <= rules.bytes_max {
            return Ok(());
        }
        Err(format!(
            "the workload floods promises: more than {} lines or {} MiB of them; promise less \
             often, or have the power cut earlier",
            rules.promises_max,
            rules.bytes_max >> 20
        ))
    }

    /// Remember the first refusal, and have it recorded: the power may go
    /// before the workload's end is told.
    fn refuse(&self, why: String) -> String {
        let first = {
            let mut state = self.lock();
            let first = state.refused.is_none();
            state.refused.get_or_insert(why.clone());
            first
        };
        if first && let Err(error) = self.promises.record(Promise::Garbled { why: why.clone() }) {
            return format!("{why}; and the host does not know: {error:#}");
        }
        why
    }
}
