//! The peer: prefixes of a log of dm-log-writes, replayed one after the other
//! in a guest.
//!
//! As xfstests' generic/455 and generic/482 do it: after each entry with FLUSH
//! or FUA and at each mark, what came since the last one is written to a thin
//! volume, and a snapshot of that is mounted, so that recovery does not disturb
//! what is replayed. Everything that is not the method is in the peer's favour:
//! one process talks to device-mapper and starts no tool, no prefix is begun
//! from the front again, and what maps the thin volumes is in memory. All data
//! is on the same disk as in our own guests.

use std::{fmt, fs, num::NonZeroU32, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use plugpull_disk::{
    ByteCount, CutPoint, Seed, View,
    explore::{self, Budget, Classes},
    interop::{Count, import},
};
use serde::Deserialize;

use super::{Stage, python, size_mib};
use crate::{
    bench::DATA_DISK,
    scenario::{Case, Fs, Named, TakenFor},
};

const PROGRAM: &str = include_str!("prefixes.py");
/// Of one prefix, checked twice; and of recording and reading the log.
const EACH: Duration = Duration::from_secs(3);
const ALL: Duration = Duration::from_secs(240);
/// What recovery writes beside the replayed disk, in bytes.
const POOL_ROOM: u64 = 64 << 20;
/// So many contents are told apart at most.
const TOLD_APART: usize = 20_000;
/// What a prefix's time goes into.
pub(super) const PARTS: usize = 4;
/// Where the workload begins.
const MADE: &[u8] = b"mkfs";

/// What a replay came to.
#[derive(Debug, Clone)]
pub(super) struct Prefixes {
    said: Said,
    /// Different disks that a power cut could have left, by the same log.
    told_apart: usize,
}

#[derive(Debug, Clone, Deserialize)]
struct Said {
    prefixes: u64,
    /// How many different disks they are.
    distinct: u64,
    log_bytes: u64,
    plain: Spent,
    checked: Spent,
}

/// Seconds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Spent {
    all: f64,
    replay: f64,
    snapshot: f64,
    look: f64,
    fsck: f64,
}

impl Prefixes {
    /// Prefixes a second, with fsck or without.
    pub(super) fn per_second(&self, fsck: bool) -> f64 {
        self.said.prefixes as f64 / self.spent(fsck).all
    }

    fn spent(&self, fsck: bool) -> &Spent {
        match fsck {
            true => &self.said.checked,
            false => &self.said.plain,
        }
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.said.prefixes
    }

    /// How many different disks they are.
    pub(super) fn distinct(&self) -> u64 {
        self.said.distinct
    }

    /// How many different disks ours tells apart on the same log.
    pub(super) fn told_apart(&self) -> usize {
        self.told_apart
    }

    /// What a prefix took, in milliseconds by part.
    pub(super) fn parts(&self) -> [(&'static str, f64); PARTS] {
        let (plain, checked) = (self.said.plain, self.said.checked);
        let parts = [
            ("  replay, a prefix", plain.replay),
            ("  snapshot made and removed", plain.snapshot),
            ("  mount, read, unmount", plain.look),
            ("  fsck", checked.fsck),
        ];
        parts.map(|(name, seconds)| (name, 1000.0 * seconds / self.said.prefixes as f64))
    }
}

impl fmt::Display for Prefixes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} prefixes, {} different disks, {:.1} a second, with fsck {:.1}",
            self.count(),
            self.distinct(),
            self.per_second(false),
            self.per_second(true)
        )
    }
}

/// Record and replay so many prefixes.
pub(super) fn measure(stage: Stage<'_>, case: &Case, prefixes: NonZeroU32) -> Result<Prefixes> {
    let dir = tempfile::tempdir_in(stage.dir).context("make a directory for a guest")?;
    let zeros = View::zeros(ByteCount(DATA_DISK.size.0))?;
    let session = python::session(stage, &case.guest, DATA_DISK, zeros, &dir)?;
    // Its filesystem must flush, or the log has none; nobody cuts its power.
    session.take_for(TakenFor::WriteBack)?;
    let fs = case.lower.fs;
    let size = size_mib(fs) << 20;
    // Behind what is logged the thin pool, and behind that the log.
    let log_at = 2 * size + POOL_ROOM;
    let numbers = [u64::from(prefixes.get()), size, log_at].map(|n| n.to_string());
    let mut args = vec![fs.name(), mkfs(fs), fsck(fs)];
    args.extend(numbers.iter().map(String::as_str));
    let deadline = ALL + EACH * prefixes.get();
    let said: Said = python::run(&session, PROGRAM, &args, deadline)?;
    let disk = session.pull_the_plug()?;
    ensure!(
        said.prefixes == u64::from(prefixes.get()),
        "the log has {} prefixes, and {prefixes} were wanted",
        said.prefixes
    );
    let told_apart = told_apart(&disk.view(), size, (log_at, said.log_bytes), dir.path())?;
    Ok(Prefixes { said, told_apart })
}

/// The guest's own command lines, see guest/src/mounts.rs.
fn mkfs(fs: Fs) -> &'static str {
    match fs {
        Fs::Ext4 => "/sbin/mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0,nodiscard",
        Fs::Xfs => "/sbin/mkfs.xfs -q -f -K",
        Fs::Btrfs => "/sbin/mkfs.btrfs -q -f -K",
    }
}

fn fsck(fs: Fs) -> &'static str {
    match fs {
        Fs::Ext4 => "/sbin/e2fsck -f -n",
        Fs::Xfs => "/sbin/xfs_repair -n",
        Fs::Btrfs => "/bin/btrfs check --readonly",
    }
}

/// How many different disks a power cut during the logged run could have left.
fn told_apart(disk: &View, size: u64, (at, bytes): (u64, u64), dir: &Path) -> Result<usize> {
    let mut log = vec![0; usize::try_from(bytes)?];
    disk.read_at(at, &mut log)?;
    let path = dir.join("log-writes");
    fs::write(&path, &log).context("keep the kernel's log")?;
    let size = ByteCount(size);
    let recording = import(
        &path,
        size,
        Count::AsWritten,
        &dir.join("log-writes.disklog"),
    )?;
    let made = recording.marks().find(|mark| mark.text == MADE);
    let budget = Budget {
        states: TOLD_APART,
        from: CutPoint(made.context("the log has no mark of mkfs's end")?.seq),
        seed: Seed(0),
        classes: Classes::ALL,
    };
    let plan = explore::plan(&recording, &View::zeros(size)?, budget)?;
    Ok(plan.states.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_all_the_time_and_parts_of_each_prefix() {
        let said = serde_json::json!({
            "prefixes": 20, "distinct": 15, "log_bytes": 4096,
            "plain": {"all": 4.0, "replay": 0.5, "snapshot": 1.0, "look": 2.0, "fsck": 0.0},
            "checked": {"all": 10.0, "replay": 0.7, "snapshot": 1.2, "look": 2.0, "fsck": 6.0},
        });
        let prefixes = Prefixes {
            said: serde_json::from_value(said).expect("what the program says"),
            told_apart: 900,
        };
        assert_eq!(
            [false, true].map(|fsck| prefixes.per_second(fsck)),
            [5.0, 2.0]
        );
        let parts = prefixes.parts().map(|(_, ms)| ms);
        assert_eq!(parts, [25.0, 50.0, 100.0, 300.0]);
    }
}
