//! An interactive shell on the serial console, for a person at the host.
//!
//! The shell needs a session and a controlling terminal of its own, or there
//! is no job control and no Ctrl-C. A process of this binary makes itself the
//! leader of a session, takes the serial line for its terminal, and becomes the
//! shell.

use std::{
    fs::File,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result};
use plugpull_protocol::Exited;
use rustix::{
    process::{Pid, WaitId, WaitIdOptions, ioctl_tiocsctty, setsid, waitid},
    termios::{Winsize, tcsetwinsize},
};

use crate::session;

/// The word of the command line that turns this binary into the shell.
pub(crate) const WORD: &str = "console";
const DEVICE: &str = "/dev/ttyS0";
/// How the terminal's size reaches the process that becomes the shell.
const ROWS: &str = "PLUGPULL_ROWS";
const COLUMNS: &str = "PLUGPULL_COLUMNS";
/// The agent has no environment to inherit; the root disk cannot be written.
const ENVIRONMENT: [(&str, &str); 3] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/tmp"),
    ("PS1", r"guest:\w\$ "),
];

/// The console and the shell that has it.
#[derive(Default)]
pub(crate) struct Console {
    /// The shell, which leads a session. While its number stands here it has
    /// not been reaped, so that the number is no other's.
    shell: Mutex<Option<Pid>>,
}

impl Console {
    /// Run a shell there to its end, which is the user's to decide. What it
    /// leaves on the terminal ends with it.
    ///
    /// # Errors
    /// When it cannot be started, another has the console, or something that it
    /// started does not end.
    pub(crate) fn run(&self, term: &str, rows: u16, columns: u16, dir: &str) -> Result<Exited> {
        let started = Instant::now();
        let mut shell = self.lock();
        anyhow::ensure!(shell.is_none(), "the console has a shell already");
        #[expect(
            clippy::disallowed_methods,
            reason = "the process helper gives a group and pipes; this one needs a terminal"
        )]
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(WORD)
            .current_dir(dir)
            .envs(ENVIRONMENT)
            .env("TERM", term)
            .env(ROWS, rows.to_string())
            .env(COLUMNS, columns.to_string());
        let mut child = command
            .spawn()
            .with_context(|| format!("start a shell in {dir}"))?;
        let leader = Pid::from_child(&child);
        *shell = Some(leader);
        drop(shell);
        let exited = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let waited = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(leader), exited));
        let mut shell = self.lock();
        let ended = session::end(leader);
        // Only now: until then the number is the session's.
        let status = child.wait().context("wait for the console's shell")?;
        *shell = None;
        drop(shell);
        waited.context("watch the console's shell")?;
        ended?;
        Ok(Exited {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::new(),
            stderr: String::new(),
            elapsed_ms: started.elapsed().as_millis() as u64,
        })
    }

    /// End the shell with all that it started on the terminal. A shell that has
    /// just ended is no error.
    ///
    /// # Errors
    /// When one of them cannot be signalled or does not end.
    pub(crate) fn hang_up(&self) -> Result<()> {
        match *self.lock() {
            Some(leader) => session::end(leader).context("hang up the console"),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        // Nothing below can panic half-way through a change.
        self.shell.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Take the serial line for a terminal and become the shell on it; returns only
/// on error.
pub(crate) fn become_shell() -> Result<()> {
    setsid().context("make a session for the console's shell")?;
    let line = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .with_context(|| format!("open {DEVICE}"))?;
    // The leader of a session gets the first terminal that it opens; this says
    // so where the kernel found it otherwise.
    ioctl_tiocsctty(&line).with_context(|| format!("make {DEVICE} the controlling terminal"))?;
    let size = Winsize {
        ws_row: number(ROWS)?,
        ws_col: number(COLUMNS)?,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&line, size).context("set the terminal's size")?;
    rustix::stdio::dup2_stdin(&line)?;
    rustix::stdio::dup2_stdout(&line)?;
    rustix::stdio::dup2_stderr(&line)?;
    let bash = ["/bin/bash", "--norc", "--noprofile", "-i"];
    let argv: &[&str] = match Path::new(bash[0]).exists() {
        true => &bash,
        false => &["/bin/sh", "-i"],
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "this process becomes the shell; it starts none"
    )]
    let error = Command::new(argv[0])
        .args(&argv[1..])
        .env_remove(ROWS)
        .env_remove(COLUMNS)
        .exec();
    Err(error).with_context(|| format!("become {}", argv[0]))
}

fn number(variable: &str) -> Result<u16> {
    let text = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
    text.parse()
        .with_context(|| format!("{variable} is no number: {text:?}"))
}
