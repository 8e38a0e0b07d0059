//! `cargo xtask shell`, by commands, by a script, on a terminal; and when what
//! is run there brings the guest down.

use std::{
    fs::File,
    io::{Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use plugpull_vm::{
    cache::Home,
    process::{Cmd, Output, RunError},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};

use crate::{IMAGE, Test, runs::xtask};

pub(crate) const TESTS: &[Test] = &[
    ("shell_commands", commands),
    ("shell_script", script),
    ("shell_trouble", trouble),
    ("shell_terminal", terminal),
];

/// A template may have to be made first.
const DEADLINE: Duration = Duration::from_secs(300);

fn commands() -> Result<()> {
    let said = ended(shell().args([
        "-c",
        "echo a > f; sync; cat /mnt/lower/f; pwd; echo e >&2; exit 7",
    ]))?;
    ensure!(said.status.code() == Some(7), "{said:?}");
    ensure!(said.stdout_text() == "a\n/mnt/fs\n", "{said:?}");
    ensure!(said.stderr_text().ends_with("\ne\n"), "{said:?}");
    Ok(())
}

/// One script and not so many commands: a directory, a variable and a loop
/// over several lines stay what they are.
fn script() -> Result<()> {
    let script = "cd /tmp\nword=kept\nfor i in 1 2; do\n  echo $i $word $PWD\ndone\nfalse\n";
    let said = ended(shell().args(["--lower", "xfs"]).stdin(script))?;
    ensure!(said.status.code() == Some(1), "{said:?}");
    ensure!(
        said.stdout_text() == "1 kept /tmp\n2 kept /tmp\n",
        "{said:?}"
    );
    Ok(())
}

fn trouble() -> Result<()> {
    let state = tempfile::tempdir()?;
    let home = Home::find()?;
    for (command, word) in [
        (
            "echo c > /proc/sysrq-trigger; sleep 99",
            "sysrq triggered crash",
        ),
        // Something that uses the mount when it is to be taken down.
        (
            "setsid sleep 99 & sleep 0.1",
            "unmount /mnt/fs: Device or resource busy",
        ),
    ] {
        // What a failed command leaves is not to stand among the user's runs.
        let shell = shell()
            .env("PLUGPULL_STATE", state.path())
            .env("PLUGPULL_CACHE", &home.cache);
        let said = ended(shell.args(["-c", command]))?;
        ensure!(said.status.code() == Some(69), "{command}: {said:?}");
        ensure!(said.stderr_text().contains(word), "{command}: {said:?}");
    }
    Ok(())
}

fn terminal() -> Result<()> {
    let mut screen = Screen::new()?;
    let line = screen.line()?;
    let before = tcgetattr(&line)?.local_modes;
    let mut running = shell()
        .stdin_file(line.try_clone()?)
        .stdout_file(line.try_clone()?)
        .stderr_file(line.try_clone()?)
        .spawn()?;
    screen.shows("guest:/mnt/fs# ")?;
    ensure!(!tcgetattr(&line)?.local_modes.contains(LocalModes::ICANON));
    screen.type_in("echo $((6 * 7)) $(tty)\r")?;
    screen.shows("42 /dev/ttyS0")?;
    screen.shows("guest:/mnt/fs# ")?;
    // Ctrl-C is for the guest's program, once that is there to get it: what is
    // typed comes back twice, from the terminal and from the program. Ctrl-] is
    // for us, whatever runs there.
    screen.type_in("echo re''ady; cat; echo not this\r")?;
    screen.shows("ready\r\n")?;
    screen.type_in("twice\r")?;
    screen.shows("twice\r\ntwice\r\n")?;
    screen.type_in("\x03")?;
    let answer = screen.shows("guest:/mnt/fs# ")?;
    ensure!(!answer.contains("not this"), "{answer}");
    // All that runs in the mount has to end, or it cannot be taken down: also
    // what does not hear that the line has dropped.
    screen.type_in("(trap '' HUP; echo de''af; exec sleep 1000) & cat\r")?;
    screen.shows("deaf\r\n")?;
    screen.type_in("\x1d")?;
    let status = running.wait(DEADLINE)?;
    screen.look()?;
    ensure!(status.success(), "{status}: {}", screen.seen);
    ensure!(
        tcgetattr(&line)?.local_modes == before,
        "the terminal stays raw"
    );
    Ok(())
}

/// A terminal's other side.
struct Screen {
    master: File,
    seen: String,
}

impl Screen {
    fn new() -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        Ok(Self {
            master: File::from(master),
            seen: String::new(),
        })
    }

    fn line(&self) -> Result<File> {
        let path = ptsname(&self.master, Vec::new())?;
        let open = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
        let line = rustix::fs::open(path.as_c_str(), open, rustix::fs::Mode::empty())?;
        Ok(File::from(line))
    }

    fn type_in(&mut self, keys: &str) -> Result<()> {
        Ok(self.master.write_all(keys.as_bytes())?)
    }

    /// Take in what is shown already.
    fn look(&mut self) -> Result<()> {
        let now = Timespec::default();
        while poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&now))? > 0 {
            self.read()?;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let mut bytes = [0; 4096];
        let count = self.master.read(&mut bytes)?;
        self.seen
            .push_str(&String::from_utf8_lossy(&bytes[..count]));
        Ok(())
    }

    /// Wait until this is shown, and forget all up to there; what was shown
    /// before it comes back.
    fn shows(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some((before, after)) = self.seen.split_once(text) {
                let before = before.to_owned();
                self.seen = after.to_owned();
                return Ok(before);
            }
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
            let ready = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&left))?;
            ensure!(ready > 0, "{text:?} does not come after: {}", self.seen);
            self.read()?;
        }
    }
}

fn shell() -> Cmd {
    Cmd::new(xtask()).args(["shell", "--image", IMAGE])
}

/// What it came to, whatever that is.
fn ended(command: Cmd) -> Result<Output> {
    match command.run(DEADLINE) {
        Ok(output) => Ok(output),
        Err(RunError::Failed { output, .. }) => Ok(*output),
        Err(error) => Err(error.into()),
    }
}
