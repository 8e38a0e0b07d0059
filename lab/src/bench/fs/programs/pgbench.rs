//! pgbench, on a cluster made by initdb on the mount.
//!
//! PostgreSQL refuses to run as root, and `passthrough_hp` creates files as itself and
//! not as its caller. So the programs run in a user namespace (user_namespaces(7))
//! that shows root as an ordinary user, without root's privileges: for every server
//! they are the user who mounted.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    sync::mpsc::channel,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use plugpull_vm::process::{Child, Cmd};
use rustix::process::Signal;

use crate::bench::fs::work::{Measured, Meter};

/// The user `daemon` that every Linux has, as the programs see themselves.
const SHOWN_AS: &str = "1";
/// The database's own name for its owner.
const USER: &str = "postgres";
const DEADLINE: Duration = Duration::from_secs(120);
const VERSIONS: &str = "/usr/lib/postgresql";
const READY: &str = "database system is ready to accept connections";
const SCALE: &str = "2";
const CLIENTS: &str = "4";

/// Where PostgreSQL's programs are: of the newest version, as Debian installs them.
pub(in crate::bench::fs) fn bin_dir() -> Option<PathBuf> {
    let versions = fs::read_dir(VERSIONS).ok()?.flatten();
    let number = |path: &PathBuf| -> Option<u32> { path.file_name()?.to_str()?.parse().ok() };
    versions
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/pgbench").exists() && path.join("bin/initdb").exists())
        .max_by_key(number)
        .map(|path| path.join("bin"))
}

/// An empty directory for the cluster.
///
/// # Errors
/// When it cannot be made.
pub(in crate::bench::fs) fn prepare(dir: &Path) -> Result<()> {
    let data = dir.join("cluster");
    fs::create_dir(&data).with_context(|| format!("make {}", data.display()))
}

/// initdb and pgbench's tables, then the transactions that count.
///
/// # Errors
/// PostgreSQL's own.
pub(in crate::bench::fs) fn run(
    dir: &Path,
    aside: &Path,
    seconds: u32,
    meter: &mut Meter<'_>,
) -> Result<()> {
    let bin = bin_dir().with_context(|| format!("no pgbench below {VERSIONS}"))?;
    let data = dir.join("cluster");
    let sockets = aside.join("postgres");
    fs::create_dir_all(&sockets).with_context(|| format!("make {}", sockets.display()))?;
    as_user(&bin.join("initdb"), &sockets)
        .args([
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
            "-U",
            USER,
            "-D",
        ])
        .arg(&data)
        .run(DEADLINE)?;
    let mut server = start(&bin, &data, &sockets)?;
    let pgbench = || {
        as_user(&bin.join("pgbench"), &sockets)
            .arg("-h")
            .arg(&sockets)
            .args(["-U", USER])
    };
    pgbench()
        .args(["-i", "-q", "-s", SCALE, USER])
        .run(DEADLINE)?;
    meter.measure(|| {
        let began = Instant::now();
        let said = pgbench()
            .args([
                "-n",
                "-c",
                CLIENTS,
                "-j",
                "2",
                "-T",
                &seconds.to_string(),
                USER,
            ])
            .run(DEADLINE)?
            .stdout_text();
        let (rate, ops) =
            parse(&said).with_context(|| format!("pgbench says no rate, but {said:?}"))?;
        Ok(Measured {
            rate,
            ops,
            seconds: began.elapsed().as_secs_f64(),
        })
    })?;
    // Fast shutdown (postgres(1)): its files must be closed before the mount ends.
    server.signal(Signal::INT)?;
    let status = server.wait(DEADLINE)?;
    if !status.success() {
        bail!("postgres ended with {status}");
    }
    Ok(())
}

/// Started when it says so itself.
fn start(bin: &Path, data: &Path, sockets: &Path) -> Result<Child> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let server = as_user(&bin.join("postgres"), sockets)
        .args(["-c", "listen_addresses=", "-c", "shared_buffers=32MB"])
        .arg("-k")
        .arg(sockets)
        .arg("-D")
        .arg(data)
        .stderr_file(File::from(write))
        .spawn()?;
    let (tell, told) = channel();
    std::thread::spawn(move || {
        // Its whole log is read, or it would wait for room in the pipe.
        for line in BufReader::new(File::from(read))
            .lines()
            .map_while(Result::ok)
        {
            let _not_wanted = tell.send(line);
        }
    });
    let (end, mut log) = (Instant::now() + DEADLINE, String::new());
    loop {
        match told.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(READY) => return Ok(server),
            Ok(line) => log = log + "\n    " + &line,
            Err(why) => bail!("{why} while waiting for postgres to be ready; it said:{log}"),
        }
    }
}

/// Both programs replace themselves by the next, so that the parent is ours; a change
/// of user clears the parent-death signal (prctl(2)), so it is set behind it.
fn as_user(program: &Path, dir: &Path) -> Cmd {
    Cmd::new("unshare")
        .args(["--user", "--map-user", SHOWN_AS, "--map-group", SHOWN_AS])
        .args(["--", "setpriv", "--pdeathsig", "KILL", "--"])
        .arg(program)
        .dir(dir)
        .env("LC_ALL", "C")
}

/// The rate and the number of transactions out of pgbench's summary.
fn parse(said: &str) -> Option<(f64, u64)> {
    let value = |key: &str| said.lines().find_map(|line| line.strip_prefix(key));
    let rate = value("tps = ")?.split(' ').next()?.parse().ok()?;
    let ops = value("number of transactions actually processed: ")?;
    Some((rate, ops.split('/').next()?.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_summary_is_read() {
        let said = "scaling factor: 2\nnumber of transactions actually processed: 3021\n\
                    number of failed transactions: 0 (0.000%)\nlatency average = 5.3 ms\n\
                    tps = 755.114000 (without initial connection time)\n";
        assert_eq!(parse(said), Some((755.114, 3021)));
        assert_eq!(parse("tps = many"), None);
    }
}
