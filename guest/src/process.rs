//! The one place that starts processes.
//!
//! A process gets a group of its own, standard input from nowhere, and pipes
//! whose last bytes are kept. It can be waited for with a deadline, and when
//! its handle is dropped its whole group is killed and the process reaped:
//! nothing outlives the request that started it.
//!
//! Two limits. A descendant that makes itself a session leader (a daemon; the
//! children of a PostgreSQL server) leaves the group and is not reached. A
//! process in uninterruptible sleep cannot be killed, and reaping waits for
//! it: the host's own deadline ends such a guest.
//!
//! Who runs as init must not reap with `waitpid(-1)`, or the exit codes end up
//! there.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use plugpull_protocol::Exited;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

/// How many of the last bytes of each stream are kept.
const TAIL_BYTES: usize = Exited::TAIL_BYTES;

/// How long the pipes of a process that has exited may stay open: only a
/// descendant outside its group can hold them.
const DRAIN: Duration = Duration::from_secs(2);

/// Gets each line of a stream, without its end; then `None` at the stream's
/// end.
pub(crate) type LineSink = Box<dyn FnMut(Option<&str>) + Send>;

/// A process to start.
pub(crate) struct Spec {
    argv: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    user: Option<(u32, u32)>,
    dir: Option<PathBuf>,
    stderr_lines: Option<LineSink>,
}

impl Spec {
    /// A program with its arguments and the caller's environment.
    pub(crate) fn new<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(|a| a.as_ref().to_owned()).collect(),
            env: Vec::new(),
            user: None,
            dir: None,
            stderr_lines: None,
        }
    }

    /// Add arguments.
    #[must_use]
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        let args = args.into_iter().map(|a| a.as_ref().to_owned());
        self.argv.extend(args);
        self
    }

    /// Set a variable beside the caller's environment.
    #[must_use]
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let pair = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.env.push(pair);
        self
    }

    /// Run as this user and group, with no other groups.
    #[must_use]
    pub(crate) fn user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Run there; a program that is named by a relative path is looked for
    /// there too (`execve(2)` comes after `chdir(2)`).
    #[must_use]
    pub(crate) fn dir(mut self, dir: PathBuf) -> Self {
        self.dir = Some(dir);
        self
    }

    /// Show each line of standard error to a sink, on a thread of its own.
    #[must_use]
    pub(crate) fn stderr_lines(mut self, sink: LineSink) -> Self {
        self.stderr_lines = Some(sink);
        self
    }

    /// Start it.
    ///
    /// # Errors
    /// When it cannot be started; the whole command line is named.
    pub(crate) fn spawn(self) -> anyhow::Result<Process> {
        let line = command_line(&self.argv);
        let program = self.argv.first().context("an empty command")?;
        #[expect(clippy::disallowed_methods, reason = "this is the one place")]
        let mut command = Command::new(program);
        command
            .args(&self.argv[1..])
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(dir) = self.dir {
            command.current_dir(dir);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {line}"))?;
        let stdout = child.stdout.take().map(|pipe| Tail::follow(pipe, None));
        let stderr = child
            .stderr
            .take()
            .map(|pipe| Tail::follow(pipe, self.stderr_lines));
        // Own the child before anything can fail, so that it is killed then.
        let mut process = Process {
            child,
            pidfd: None,
            reaped: None,
            stdout: stdout.context("no pipe")?,
            stderr: stderr.context("no pipe")?,
            started,
            line,
        };
        let pidfd = rustix::process::pidfd_open(process.pid(), PidfdFlags::empty());
        process.pidfd = Some(pidfd.with_context(|| format!("watch {}", process.line))?);
        Ok(process)
    }

    /// Start it and wait for its end.
    ///
    /// # Errors
    /// When it cannot be started, or was killed because the time was over;
    /// the end of its output is named.
    pub(crate) fn run(self, timeout: Duration) -> anyhow::Result<Exited> {
        self.spawn()?.wait(timeout)
    }
}

/// A started process; killed with its group and reaped when dropped.
pub(crate) struct Process {
    child: Child,
    /// Only absent while the process is being set up.
    pidfd: Option<OwnedFd>,
    reaped: Option<i32>,
    stdout: Arc<Tail>,
    stderr: Arc<Tail>,
    started: Instant,
    line: String,
}

impl Process {
    /// Its process id, which is its group's too.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Send a signal to the process alone.
    ///
    /// # Errors
    /// When it has been reaped.
    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        anyhow::ensure!(self.reaped.is_none(), "{} has exited", self.line);
        rustix::process::kill_process(self.pid(), signal)
            .with_context(|| format!("send {signal:?} to {}", self.line))
    }

    /// True once it has exited; waits at most this long for it.
    ///
    /// # Errors
    /// When the kernel cannot say.
    pub(crate) fn exits_within(&self, timeout: Duration) -> anyhow::Result<bool> {
        self.exits_before(Instant::now() + timeout)
    }

    /// Wait for its end; what is left of its group is killed then.
    ///
    /// # Errors
    /// When the time is over; the process and its group are killed, and the
    /// end of its output is named.
    pub(crate) fn wait(&mut self, timeout: Duration) -> anyhow::Result<Exited> {
        if !self.exits_before(Instant::now() + timeout)? {
            let said = self.kill_and_hear();
            anyhow::bail!(
                "{} did not end within {} ms and was killed; its last output: {}",
                self.line,
                timeout.as_millis(),
                said
            );
        }
        let code = self.reap()?;
        let elapsed_ms = self.started.elapsed().as_millis() as u64;
        let drained = Instant::now() + DRAIN;
        self.stdout.wait_end(drained);
        self.stderr.wait_end(drained);
        Ok(Exited {
            code,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            elapsed_ms,
        })
    }

    /// Kill it, and say the last that it wrote, standard output first.
    pub(crate) fn kill_and_hear(&mut self) -> String {
        self.kill();
        self.stdout.wait_end(Instant::now() + DRAIN);
        self.stderr.wait_end(Instant::now() + DRAIN);
        format!("{}{}", self.stdout.text(), self.stderr.text())
    }

    /// Kill it with its group and reap it.
    pub(crate) fn kill(&mut self) {
        if self.reaped.is_none() {
            let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
            let _ = self.reap();
        }
    }

    fn exits_before(&self, deadline: Instant) -> anyhow::Result<bool> {
        let Some(pidfd) = self.pidfd.as_ref().filter(|_| self.reaped.is_none()) else {
            return Ok(true);
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&left)) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).with_context(|| format!("wait for {}", self.line)),
            }
        }
    }

    /// Kill the rest of the group, then reap: in this order, because the
    /// unreaped leader keeps the group's number from being given away.
    fn reap(&mut self) -> anyhow::Result<i32> {
        if let Some(code) = self.reaped {
            return Ok(code);
        }
        let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
        let status = self.child.wait();
        let status = status.with_context(|| format!("reap {}", self.line))?;
        let code = status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        self.reaped = Some(code);
        Ok(code)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last bytes of a stream, read by a thread until the stream ends.
struct Tail {
    state: Mutex<(VecDeque<u8>, bool)>,
    ended: Condvar,
}

impl Tail {
    fn follow(pipe: impl Read + Send + 'static, mut sink: Option<LineSink>) -> Arc<Self> {
        let tail = Arc::new(Self {
            state: Mutex::new((VecDeque::new(), false)),
            ended: Condvar::new(),
        });
        let to = Arc::clone(&tail);
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            // A line is cut at the length of the tail: no output, however
            // odd, takes more memory than that.
            while let Ok(1..) = (&mut pipe)
                .take(TAIL_BYTES as u64)
                .read_until(b'\n', &mut line)
            {
                to.push(&line);
                if let Some(sink) = &mut sink {
                    let text = String::from_utf8_lossy(&line);
                    sink(Some(text.trim_end_matches('\n')));
                }
                line.clear();
            }
            if let Some(sink) = &mut sink {
                sink(None);
            }
            to.lock().1 = true;
            to.ended.notify_all();
        });
        tail
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (VecDeque<u8>, bool)> {
        // Nothing below can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let kept = &mut self.lock().0;
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(TAIL_BYTES);
        kept.drain(..excess);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.lock().0.make_contiguous()).into_owned()
    }

    fn wait_end(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        drop(self.ended.wait_timeout_while(self.lock(), left, |s| !s.1));
    }
}

/// A command line as a person would type it.
fn command_line(argv: &[OsString]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let quoted = argv.iter().map(|arg| {
        let arg = arg.to_string_lossy();
        if !arg.is_empty() && arg.chars().all(plain) {
            arg.into_owned()
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn output_code_and_environment_come_back() {
        let script = "echo $WORD; echo err >&2; exit 7";
        let exited = Spec::new(["sh", "-c", script])
            .env("WORD", "hello")
            .run(LONG)
            .expect("it runs");
        assert_eq!((exited.code, exited.success()), (7, false));
        assert_eq!(exited.stdout, "hello\n");
        assert_eq!(exited.stderr, "err\n");
        let killed = Spec::new(["sh", "-c", "kill -9 $$"]).run(LONG);
        assert_eq!(killed.expect("it runs").code, 128 + 9);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Spec::new(["/no/such", "a b"]).run(LONG).expect_err("none");
        assert_eq!(error.to_string(), "start /no/such 'a b'");
    }

    #[test]
    fn only_the_end_of_much_output_is_kept() {
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
        let exited = Spec::new(["sh", "-c", script]).run(LONG).expect("it runs");
        assert!(exited.stdout.ends_with("line 19999\n"));
        assert_eq!(exited.stdout.len(), TAIL_BYTES);
    }

    #[test]
    fn the_deadline_kills_the_whole_group_and_says_what_it_said() {
        let script = "echo started; sleep 1000 & echo $!; wait";
        let error = Spec::new(["sh", "-c", script])
            .run(Duration::from_millis(300))
            .expect_err("it never ends")
            .to_string();
        assert!(error.contains("did not end within 300 ms"), "{error}");
        assert!(error.contains("last output: started"), "{error}");
        let pid = error.split_whitespace().last().expect("the sleeper's pid");
        let pid = pid.parse().ok().and_then(Pid::from_raw).expect("a pid");
        // Killed; perhaps still on its way out, which is announced by its pidfd.
        if let Ok(sleeper) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            let mut fds = [PollFd::new(&sleeper, PollFlags::IN)];
            let long = Timespec {
                tv_sec: LONG.as_secs() as i64,
                tv_nsec: 0,
            };
            let ended = rustix::event::poll(&mut fds, Some(&long));
            assert_eq!(ended, Ok(1), "{pid:?} lives on");
        }
    }

    #[test]
    fn dropping_kills_and_lines_are_seen_as_they_come() {
        let (lines, seen) = std::sync::mpsc::channel();
        let process = Spec::new(["sh", "-c", "echo one >&2; echo two >&2; sleep 1000"])
            .stderr_lines(Box::new(move |line| {
                let _ = lines.send(line.map(str::to_owned));
            }))
            .spawn()
            .expect("it starts");
        assert_eq!(seen.recv_timeout(LONG), Ok(Some("one".into())));
        assert_eq!(seen.recv_timeout(LONG), Ok(Some("two".into())));
        assert!(!process.exits_within(Duration::ZERO).expect("known"));
        let pid = process.pid();
        drop(process);
        assert_eq!(seen.recv_timeout(LONG), Ok(None));
        assert!(rustix::process::test_kill_process(pid).is_err());
    }

    #[test]
    fn a_daemon_that_keeps_the_pipe_does_not_hold_the_wait() {
        // setsid leaves the group: its end is its own affair. The pipe says
        // when it has left.
        let dir = tempfile::tempdir().expect("a directory");
        let script = "mkfifo up; setsid sh -c 'echo > up; sleep 8' & read _ < up; echo done";
        let script = format!("cd {}; {script}", dir.path().display());
        let started = Instant::now();
        let exited = Spec::new(["sh", "-c", &script]).run(LONG).expect("it runs");
        assert_eq!(exited.stdout, "done\n");
        let took = started.elapsed();
        assert!(DRAIN <= took && took < Duration::from_secs(7), "{took:?}");
    }
}
