//! How many crash states are checked in a second, beside what bounds it and
//! beside a replay of prefixes with dm-log-writes.
//!
//! Everything runs in guests of one image, and takes turns within a round:
//!
//! * **ours**: a recorded page workload, its crash states mounted, read and
//!   compared with the ledger, as a case of the suite does it;
//! * **the bare limit**: one program in one guest that mounts one of these
//!   states, reads it and unmounts it, and nothing else;
//! * **the peer**: the same workload logged by the kernel's dm-log-writes, and
//!   a program in the same guest that replays one prefix after the other;
//! * PostgreSQL, beside what start, recovery and stop alone take;
//! * a state that failed, shown again from its capsule.

mod again;
mod bare;
mod database;
mod groups;
mod ours;
mod prefixes;
mod python;

use std::{num::NonZeroU32, path::Path, sync::Arc};

use anyhow::{Context, Result};
use plugpull_vm::cache::Home;

use super::{
    Stage,
    figures::{Setting, Sheet},
};
use crate::scenario::{Case, Fs, ImageName, Profile, Scenario, image_names};

use bare::Bare;
use database::Database;
use ours::{Explored, Mode};
use prefixes::Prefixes;

/// What is measured, and how much of it.
#[derive(Debug, Clone)]
pub struct States {
    /// The guests' image.
    pub image: ImageName,
    /// The filesystems on the disk.
    pub lowers: Vec<Fs>,
    /// Crash states, and prefixes, of each.
    pub states: NonZeroU32,
    /// PostgreSQL states; none leaves that out.
    pub postgres: Option<NonZeroU32>,
    /// So often a failing state is shown again; not at all leaves that out.
    pub again: u32,
    /// Rounds.
    pub rounds: u32,
}

/// What runs.
struct Cases {
    lowers: Vec<(Fs, Vec<(Mode, Case)>)>,
    postgres: Option<Case>,
    again: Option<Case>,
}

impl States {
    /// The cases that run, so that their disks can be made before.
    ///
    /// # Errors
    /// When the images cannot be listed, or the numbers make no scenario.
    pub fn cases(&self, home: &Home) -> Result<Vec<Case>> {
        let cases = self.sorted(home)?;
        let lowers = cases.lowers.into_iter().flat_map(|(_, modes)| modes);
        let lowers = lowers.map(|(_, case)| case);
        Ok(lowers.chain(cases.postgres).chain(cases.again).collect())
    }

    fn sorted(&self, home: &Home) -> Result<Cases> {
        let images = image_names(&home.recipes).context("list the images")?;
        let mut lowers = Vec::new();
        for fs in &self.lowers {
            let mut modes = Vec::new();
            for mode in Mode::ALL {
                modes.push((mode, case(&images, &mode.scenario(*fs, self))?));
            }
            lowers.push((*fs, modes));
        }
        let postgres = self.postgres.map(|states| database::scenario(self, states));
        let again = (self.again > 0).then(|| again::scenario(self));
        let one = |written: Option<Written>| written.map(|w| case(&images, &w)).transpose();
        Ok(Cases {
            lowers,
            postgres: one(postgres)?,
            again: one(again)?,
        })
    }
}

/// A scenario as text.
struct Written {
    name: String,
    text: String,
}

/// The one case of a scenario that is written here.
fn case(images: &[ImageName], written: &Written) -> Result<Case> {
    case_of(images, written, Path::new(""))
}

/// The same, as if it had been read from this directory.
fn case_of(images: &[ImageName], written: &Written, dir: &Path) -> Result<Case> {
    let path = dir.join(format!("{}.toml", written.name));
    let scenario = Scenario::parse(&path, &written.text, images)?;
    let cases = Arc::new(scenario).cases(Profile::Smoke);
    let only = cases.into_iter().next();
    only.with_context(|| format!("{} has no case", written.name))
}

/// The size of a disk that a filesystem is measured on, in MiB: what the
/// suite's scenarios give it.
fn size_mib(fs: Fs) -> u64 {
    match fs {
        Fs::Ext4 => 64,
        Fs::Xfs | Fs::Btrfs => 320,
    }
}

/// What the guests of two cores should reach together, in states a second.
fn goal(fs: Fs) -> f64 {
    match fs {
        Fs::Ext4 => 50.0,
        Fs::Xfs | Fs::Btrfs => 25.0,
    }
}

/// All that was measured of one filesystem; a sample for each round.
#[derive(Default)]
struct Of {
    explored: [Vec<Explored>; Mode::ALL.len()],
    bare: Vec<Bare>,
    prefixes: Vec<Prefixes>,
}

/// Crash states a second.
///
/// # Errors
/// When a guest does not do its part, or a state breaks a promise.
pub fn states(stage: Stage<'_>, order: &States) -> Result<Sheet> {
    let setting = Setting::of(stage.bed)?;
    let mut sheet = Sheet::new("states", setting, notes());
    let cases = order.sorted(stage.bed.home())?;
    let mut all: Vec<Of> = order.lowers.iter().map(|_| Of::default()).collect();
    let (mut databases, mut again) = (Vec::new(), Vec::new());
    for round in 1..=order.rounds {
        let of = format!("round {round} of {}", order.rounds);
        for ((fs, modes), measured) in cases.lowers.iter().zip(&mut all) {
            measured
                .one_round(stage, modes, order.states, round)
                .with_context(|| format!("{fs}, {of}"))?;
        }
        if let Some(case) = &cases.postgres {
            let database = Database::measure(stage, case, round)
                .with_context(|| format!("PostgreSQL, {of}"))?;
            stage.tell(format!("PostgreSQL, {of}: {database}"));
            databases.push(database);
        }
        if cases.again.is_some() {
            let seconds = again::measure(stage, order, round)
                .with_context(|| format!("a failing state again, {of}"))?;
            stage.tell(format!("a failing state again, {of}: {seconds:.1?} s"));
            again.extend(seconds);
        }
    }
    for (fs, of) in order.lowers.iter().zip(&all) {
        sheet.groups.push(groups::ours(*fs, of));
        sheet.groups.push(groups::prefixes(*fs, of));
    }
    if !databases.is_empty() {
        sheet.groups.push(database::group(&databases));
    }
    sheet.groups.extend(groups::again(&again));
    Ok(sheet)
}

impl Of {
    /// All of them take a turn.
    fn one_round(
        &mut self,
        stage: Stage<'_>,
        modes: &[(Mode, Case)],
        states: NonZeroU32,
        round: u32,
    ) -> Result<()> {
        for ((mode, case), samples) in modes.iter().zip(&mut self.explored) {
            let (fs, label) = (case.lower.fs, mode.label());
            let (explored, crash) = ours::explore(stage, case, round)?;
            stage.tell(format!("{fs}, round {round}, {label}: {explored}"));
            samples.push(explored);
            // What it is held against comes right behind it.
            if *mode != Mode::Looked {
                continue;
            }
            let bare =
                bare::measure(stage, case, &crash, states).context("measure the bare limit")?;
            stage.tell(format!("{fs}, round {round}, bare limit: {bare}"));
            self.bare.push(bare);
            let prefixes = prefixes::measure(stage, case, states)
                .context("replay prefixes with dm-log-writes")?;
            stage.tell(format!("{fs}, round {round}, dm-log-writes: {prefixes}"));
            self.prefixes.push(prefixes);
        }
        Ok(())
    }
}

fn notes() -> Vec<String> {
    [
        "a state counts when it was mounted, its tree (one file of 64 pages, by its name) read, \
         and each page compared with what was promised by then; no two of them hold the same",
        "states a second: each guest's states by its wall time from its first to its last, \
         without its start; of several guests the sum. Not in it: recording, planning, starting \
         guests. In it: making the state, swapping the disk, mount, recovery, reading, \
         unmounting, judging",
        "a run that would end within ten seconds gets one guest, and so does one for which no \
         second slot is free; the goals are of two guests on two cores",
        "with fsck: also the filesystem's own checker, once for each content after recovery",
        "pruned: as a scenario runs unless it says otherwise; a state that differs from one \
         before only where nobody looked is judged by that look",
        "bare limit: in one guest, one python process, mount(2), every page and the whole tree \
         read, umount2(2), of one crash state; its blocks are put back after each time and that \
         is not counted. On ext4 ours reads ahead what earlier mounts have read, which the \
         limit does not",
        "prefixes: the same guest image, the kernel's dm-log-writes under the same kind of \
         workload, one python process that replays the log as xfstests' generic/455 and 482 do: \
         after each FLUSH, FUA and mark what came since the last, on a thin volume; a snapshot \
         of it is mounted, tree and pages are read and compared with the last mark. In the \
         peer's favour: what maps the thin volumes is in memory, device-mapper is asked without \
         a tool, no prefix is replayed from the front, and one guest has the machine to itself; \
         all data is on the same disk as in our own guests",
        "what prefixes cannot show: a write lost while a later one is kept, or torn, or any \
         subset of what was in flight; within an epoch no prefix but by replaying each entry. \
         Told apart: the different disks that a power cut during the same logged run could have \
         left, as plugpull-disk plans them from that log, 20000 at most; dm-log-writes does not \
         record what was in flight, so a recording of ours may have more",
        "PostgreSQL: the scenario postgres-power-cut of that many states, in one guest, with \
         amcheck, pg_checksums, every row and fsck; the floor is mount, start with recovery, \
         stop and unmount of the same run",
        "a failing state again: from opening its capsule to the oracles' words, in this \
         process, with the template made; `cargo xtask repro` takes its own start and the \
         search for QEMU and images on top",
    ]
    .map(str::to_owned)
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Named;

    #[test]
    fn the_scenarios_are_well_formed_and_on_disks_that_mkfs_takes() {
        let order = States {
            image: ImageName::new("debian13"),
            lowers: Fs::ALL.to_vec(),
            states: NonZeroU32::new(300).expect("some"),
            postgres: NonZeroU32::new(10),
            again: 1,
            rounds: 1,
        };
        let home = Home::find().expect("a workspace");
        let cases = order.cases(&home).expect("they are scenarios");
        let names: Vec<_> = cases.iter().map(|case| case.name.to_string()).collect();
        assert_eq!(names.len(), 3 * Mode::ALL.len() + 2, "{names:?}");
        assert_eq!(names[0], "states-looked::debian13::ext4::native");
        for fs in Fs::ALL {
            assert!(size_mib(*fs) >= fs.min_size_mib());
        }
    }
}
