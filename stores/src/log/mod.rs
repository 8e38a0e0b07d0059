//! `log-store`: an append-only store, and a client that has it killed.
//!
//! A server appends records to its log and syncs them when it is told to; a
//! killed one is started again and replays the log. What it then serves may
//! never have been synced: the page cache outlives the process, and not the
//! power. A store that syncs its log before it serves anything has closed that
//! gap. `--no-fsync-on-open` leaves it open, and `--no-fsync` acknowledges what
//! was only appended: both are wrong, to be caught.
//!
//! Simulated is the death of the process alone, by SIGKILL, with whole records
//! appended. Half a record comes from power cuts.

mod server;
mod store;

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use plugpull_protocol::workload::stores::{StoreSeen, log_key, log_value};

use self::store::{LogFile, OnOpen};
use crate::{Chosen, Place, begins, dirs, plugpull::Promises, tell};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write, kill the server, read what it replayed; again and again.
    Run {
        #[command(flatten)]
        place: Place,
        /// How many servers are killed.
        #[arg(long)]
        rounds: u64,
        #[command(flatten)]
        chosen: Chosen,
        #[command(flatten)]
        faults: Faults,
    },
    /// Serve one client on standard input and output.
    Serve {
        log: PathBuf,
        #[command(flatten)]
        faults: Faults,
    },
    /// Print all that the store holds.
    Look { dir: PathBuf },
}

/// What may be left out, to be caught.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Faults {
    /// Serve what was replayed without a sync.
    #[arg(long)]
    no_fsync_on_open: bool,
    /// Say that something was synced without a sync.
    #[arg(long)]
    no_fsync: bool,
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Run {
            place,
            rounds,
            chosen,
            faults,
        } => work(&place, (rounds, &chosen), faults),
        Command::Serve { log, faults } => server::serve(&log, faults),
        Command::Look { dir } => {
            let log = path(&dir);
            let mut seen = StoreSeen::default();
            // Before the store was made, there is none.
            if log.exists() {
                let store = LogFile::open(&log, OnOpen::Sync)?;
                seen.rows = store.rows();
            }
            tell(&seen)
        }
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("store.log")
}

/// Writes of a round that are synced and acknowledged, and those after them
/// that the server is killed with.
const SYNCED: u64 = 4;
const UNSYNCED: u64 = 3;

fn work(place: &Place, (rounds, chosen): (u64, &Chosen), faults: Faults) -> Result<()> {
    let log = path(&place.dir);
    drop(LogFile::open(&log, OnOpen::Sync)?);
    dirs::sync(&place.dir)?;
    let mut promises = Promises::connect()?;
    for round in (1..=rounds).filter(|round| chosen.contains(*round)) {
        begins(&mut promises, round, "")?;
        let first = (round - 1) * (SYNCED + UNSYNCED);
        let mut writes = (first..).map(|n| (log_key(place.seed, n), log_value(place.seed, n)));
        let mut server = Server::start(&log, faults)?;
        let synced: Vec<_> = writes.by_ref().take(SYNCED as usize).collect();
        for (key, value) in &synced {
            promises.begin(key, Some(value))?;
            server.append(key, value)?;
        }
        server.sync()?;
        // The latest begin of a key is what an ack means, so once for each.
        let keys: std::collections::BTreeSet<_> = synced.iter().map(|(key, _)| key).collect();
        for key in keys {
            promises.ack(key)?;
        }
        let mut unsynced = std::collections::BTreeMap::new();
        for (key, value) in writes.by_ref().take(UNSYNCED as usize) {
            promises.begin(&key, Some(&value))?;
            server.append(&key, &value)?;
            unsynced.insert(key, value);
        }
        server.kill()?;
        // Nothing was promised of these, until somebody has read them.
        let mut server = Server::start(&log, faults)?;
        for (key, value) in &unsynced {
            let got = server.get(key)?;
            ensure!(
                got.as_ref() == Some(value),
                "a killed server's log gives {key} the value {got:?} instead of {value}"
            );
            promises.served(key, value)?;
        }
        server.kill()?;
    }
    Ok(())
}

/// A server and the pipes to it; killed when dropped.
struct Server {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Server {
    /// Start one; it answers when it has replayed its log.
    fn start(log: &Path, faults: Faults) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        #[expect(
            clippy::disallowed_methods,
            reason = "this program runs in guests, alone, and the guest gives it its deadline"
        )]
        let mut command = std::process::Command::new(program);
        command.args(["log", "serve"]).arg(log);
        if faults.no_fsync_on_open {
            command.arg("--no-fsync-on-open");
        }
        if faults.no_fsync {
            command.arg("--no-fsync");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the server")?;
        let to = child.stdin.take().context("no pipe")?;
        let from = BufReader::new(child.stdout.take().context("no pipe")?);
        Ok(Self { child, to, from })
    }

    fn append(&mut self, key: &str, value: &str) -> Result<()> {
        self.ask(&format!("append {key} {value}")).map(drop)
    }

    fn sync(&mut self) -> Result<()> {
        self.ask("sync").map(drop)
    }

    fn get(&mut self, key: &str) -> Result<Option<String>> {
        let answer = self.ask(&format!("get {key}"))?;
        Ok(answer.strip_prefix("value ").map(str::to_owned))
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.to, "{line}").with_context(|| format!("tell the server `{line}`"))?;
        let mut answer = String::new();
        self.from.read_line(&mut answer)?;
        match answer.trim_end() {
            "" => bail!("the server ended when it was told `{line}`"),
            answer => Ok(answer.to_owned()),
        }
    }

    /// SIGKILL: it has no say in how it ends.
    fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the server").map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that was killed before has been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
