//! What happens in a scenario, in types that hold no wrong combination: only a
//! workload that keeps a ledger can have its power cut, only a program of the
//! user's has a check of the user's.

use std::{num::NonZeroU32, ops::Range, time::Duration};

use plugpull_disk::explore::Classes;
use plugpull_protocol::workload::{self, operations::Operations};

use super::{
    names::{Expect, OracleName, WalSync},
    proof::{Count, Threshold},
    store::Store,
};

/// One scenario's plot at the size of one profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Story {
    /// initdb on the mount and on the lower filesystem give the same.
    Initdb,
    /// Load, update, vacuum, aggregate, stop, start, ask again.
    Load(Load),
    /// Many writers, each with files of its own.
    Writers(Writers),
    /// PostgreSQL above dm-flakey: it must stop, and lose nothing.
    Flakey(Connections),
    /// A program of the guest's distribution does its work and is judged by
    /// what it left.
    Distribution(DistributionProgram),
    /// The same calls on the mount and on a plain directory beside it.
    Conformance(Conformance),
    /// Named checks, each on the mount and on a plain directory beside it.
    NamedChecks,
    /// The power goes; what is left is judged.
    PowerCut(Cuttable, PowerCut),
    /// A program of the user's runs to its end and is judged there.
    Program(Program),
}

/// A workload that says what it promises, so that its power can be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuttable {
    /// PostgreSQL connections that record every acknowledgement.
    PostgresLedger(LedgerLoad),
    /// One page written and fsynced at a time.
    PageFsync,
    /// A program of the user's.
    Program(Program),
}

/// The parameters of `postgres-ledger`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLoad {
    /// Connections that commit.
    pub connections: Connections,
    /// How their commits get onto the disk.
    pub wal_sync: WalSync,
    /// Whether a page goes into the log whole when it is first changed after a
    /// checkpoint, so that recovery mends it where it was torn.
    pub full_page_writes: bool,
}

impl LedgerLoad {
    /// The server's settings, `name=value`; of two for one name the later is
    /// taken (postgres(1), `-c`).
    pub fn settings(self) -> Vec<String> {
        let common = workload::LEDGER_CONF.iter().map(|line| (*line).to_owned());
        let own = format!("wal_sync_method={}", self.wal_sync);
        let pages = match self.full_page_writes {
            true => "full_page_writes=on",
            false => "full_page_writes=off",
        };
        common.chain([pages.to_owned(), own]).collect()
    }
}

/// How many connections work at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections(pub NonZeroU32);

/// The parameters of `postgres-load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Rows in all.
    pub rows: NonZeroU32,
    /// Rows in one transaction; 1 commits them one by one.
    pub rows_per_commit: NonZeroU32,
    /// Connections that update while the rows are loaded.
    pub connections: Connections,
}

/// The parameters of `writers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writers {
    /// Concurrent writers.
    pub writers: NonZeroU32,
    /// Rounds that each of them makes.
    pub rounds: NonZeroU32,
    /// Files that each writer makes in each round.
    pub files_per_round: NonZeroU32,
}

impl Writers {
    /// Files made in all.
    pub fn files(&self) -> u64 {
        u64::from(self.writers.get())
            * u64::from(self.rounds.get())
            * u64::from(self.files_per_round.get())
    }
}

/// A program of the guest's distribution, with the sizes of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistributionProgram {
    /// Which, on what; the seed is the case's own and zero here.
    pub program: workload::Program,
    /// Whether a bit of what it left is flipped below the mount before it is
    /// looked at there: a control.
    pub damage: bool,
}

impl DistributionProgram {
    /// What judges it.
    pub fn oracle(&self) -> OracleName {
        match self.program {
            workload::Program::GitClone(_) => OracleName::Repository,
            workload::Program::TarRoundTrip(_) => OracleName::Archive,
            workload::Program::Sqlite(_) => OracleName::Database,
        }
    }

    /// The same with the case's seed.
    pub fn seeded(mut self, seed: u64) -> workload::Program {
        match &mut self.program {
            workload::Program::GitClone(of) => of.seed = seed,
            workload::Program::TarRoundTrip(of) => of.seed = seed,
            workload::Program::Sqlite(of) => of.seed = seed,
        }
        self.program
    }

    /// What both looks, through the mount and below it, must find. None of it
    /// depends on the seed.
    fn prove(&self, wanted: &mut Vec<(Count, u64)>) {
        const LOOKS: u64 = 2;
        match &self.program {
            // The repository and its clone.
            workload::Program::GitClone(of) => wanted.extend([
                (Count::Commits, LOOKS * 2 * u64::from(of.commits)),
                (Count::FilesVerified, LOOKS * 2 * of.files_left()),
            ]),
            // The tree that was packed and the one that was unpacked.
            workload::Program::TarRoundTrip(of) => {
                wanted.push((Count::FilesVerified, LOOKS * 2 * of.entries()));
            }
            // A database for each journal mode; a transaction has at least a
            // row.
            workload::Program::Sqlite(of) => {
                let modes = workload::plan::JOURNAL_MODES.len() as u64;
                wanted.extend([
                    (Count::Commits, LOOKS * modes * of.commits()),
                    (Count::RowsVerified, LOOKS * modes * of.commits()),
                ]);
            }
        }
    }
}

/// The parameters of `conformance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conformance {
    /// Random sequences of calls.
    pub sequences: NonZeroU32,
    /// Operations of fsx, mappings included.
    pub operations: NonZeroU32,
    /// Whether the mount is given a wrong call now and then, and fsx a wrong
    /// byte: a control.
    pub damage: bool,
}

/// What `plugpull-conformance check` has at least: it has 67 today.
const NAMED_CHECKS: u64 = 60;

impl Conformance {
    /// A sequence has up to sixty calls, and few have less than ten.
    fn prove(&self, wanted: &mut Vec<(Count, u64)>) {
        let sequences = u64::from(self.sequences.get());
        wanted.extend([
            (Count::Sequences, sequences),
            (Count::Calls, sequences * 10),
            (Count::FsxOperations, self.operations.get().into()),
        ]);
    }
}

/// A program of the user's and what judges it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Host files copied into the guest, beside each other.
    pub files: Vec<HostFile>,
    /// The workload; `{dir}`, `{seed}` and `{operations}` stand for values.
    pub run: Argv,
    /// How many operations it has, if it can be told which of them to carry out.
    pub operations: Option<NonZeroU32>,
    /// What judges the state it leaves.
    pub judge: Judge,
}

/// A file of the host's, as the scenario names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// Its path; a relative one starts at the scenario file's directory.
    pub written: String,
    /// Where that stands, in bytes of the scenario file.
    pub span: Range<usize>,
}

impl HostFile {
    /// Its name, in the guest too.
    pub fn name(&self) -> &str {
        let path = self.written.trim_end_matches('/');
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }
}

/// What judges the state that a user's program leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judge {
    /// The files oracle: keys are paths, values the SHA-256 of the content.
    Files {
        /// Unacknowledged files are the old or the new content, whole.
        atomic: bool,
    },
    /// A program; exit 0 is "kept its promises".
    Check {
        /// Further host files it needs.
        files: Vec<HostFile>,
        /// `{dir}`, `{ledger}` and `{seed}` stand for values.
        run: Argv,
    },
    /// The oracles of a built-in store.
    Store(Store),
}

/// A command line with placeholders, known to be spelt right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv(Vec<String>);

impl Argv {
    pub(crate) fn new(words: Vec<String>) -> Self {
        Self(words)
    }

    /// The words as written.
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// The words with each `{name}` of `values` replaced. A value is never
    /// searched for placeholders itself.
    pub fn filled(&self, values: &[(&str, &str)]) -> Vec<String> {
        self.0.iter().map(|word| fill(word, values)).collect()
    }
}

fn fill(word: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let hit = values.iter().find_map(|(name, value)| {
            let tail = from[1..].strip_prefix(name)?.strip_prefix('}')?;
            Some((*value, tail))
        });
        (rest, _) = match hit {
            Some((value, tail)) => (tail, out.push_str(value)),
            None => (&from[1..], out.push('{')),
        };
    }
    out.push_str(rest);
    out
}

/// When the power goes and how much of what follows is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerCut {
    /// Where.
    pub cuts: Cuts,
    /// Crash states at most, over all cuts.
    pub states: NonZeroU32,
    /// Whether the lower filesystem's own checker looks at what was recovered.
    pub fsck: bool,
    /// How often the power goes again while a state recovers.
    pub nested: u32,
    /// Whether a state is not looked at that differs from one before only where nobody looked.
    pub prune: bool,
    /// Which kinds of states, where it is cut everywhere.
    pub kinds: Classes,
    /// How often the workload is run again at most, with fewer of its operations, to tell a
    /// failure.
    pub reruns: u32,
}

/// Where the power goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuts {
    /// At so many points chosen from the seed, while the workload runs.
    Seeded(NonZeroU32),
    /// At one given point.
    At(CutPoint),
    /// Everywhere in one recorded run, breadth first.
    Everywhere,
}

impl Cuts {
    /// How long the power stays on because the scenario says so.
    pub fn named_time(&self) -> Duration {
        match self {
            Self::At(CutPoint::TimeMs(ms)) => Duration::from_millis(*ms),
            Self::At(_) | Self::Seeded(_) | Self::Everywhere => Duration::ZERO,
        }
    }
}

/// One given point; the first of its kind is number 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutPoint {
    /// When so many requests have been submitted.
    Request(u64),
    /// When so many flushes have been submitted.
    Flush(u64),
    /// At the mark with this text.
    Mark(String),
    /// After so many milliseconds of the workload.
    TimeMs(u64),
}

/// At each cut at least: durable only, everything submitted, one seeded subset.
pub const STATES_PER_CUT: u32 = 3;

impl Story {
    /// The oracles that judge this story.
    pub fn oracles(&self) -> Vec<OracleName> {
        let mut oracles = self.own_oracles().to_vec();
        if let Self::PowerCut(_, PowerCut { fsck: true, .. }) = self {
            oracles.push(OracleName::Fsck);
        }
        oracles
    }

    fn own_oracles(&self) -> &'static [OracleName] {
        use OracleName as O;
        match self {
            Self::Initdb => &[O::Exit, O::Tree, O::Checksums, O::Log],
            Self::Load(_) => &[O::Answers, O::Amcheck, O::Log],
            Self::Writers(_) => &[O::Writers],
            Self::Flakey(_) => &[O::Stopped, O::Recovery, O::Ledger, O::Atomicity, O::Log],
            Self::Distribution(program) => match program.program {
                workload::Program::GitClone(_) => &[O::Repository],
                workload::Program::TarRoundTrip(_) => &[O::Archive],
                workload::Program::Sqlite(_) => &[O::Database],
            },
            Self::Conformance(_) => &[O::Conformance, O::Fsx],
            Self::NamedChecks => &[O::Checks],
            Self::PowerCut(Cuttable::PostgresLedger(_), _) => &[
                O::Recovery,
                O::Ledger,
                O::Atomicity,
                O::Amcheck,
                O::Checksums,
                O::Log,
            ],
            Self::PowerCut(Cuttable::PageFsync, _) => &[O::Recovery, O::Ledger],
            Self::PowerCut(Cuttable::Program(program), _) => match program.judge {
                Judge::Files { .. } => &[O::Recovery, O::Files],
                Judge::Check { .. } => &[O::Recovery, O::Check],
                Judge::Store(ref store) => store.oracles(),
            },
            Self::Program(program) => match program.judge {
                Judge::Files { .. } => &[O::Exit, O::Files],
                Judge::Check { .. } => &[O::Exit, O::Check],
                // Without a power cut there is no such story.
                Judge::Store(ref store) => store.oracles(),
            },
        }
    }

    /// What a run of this story must have done before its verdict counts.
    ///
    /// A control stops being interesting once it is caught, so it proves only
    /// that its oracle judged something real.
    pub fn thresholds(&self, expect: &Expect, lossy: bool) -> Vec<Threshold> {
        let mut wanted = vec![(Count::OracleChecks, 1)];
        match expect {
            Expect::Caught(_) => self.prove_control(&mut wanted),
            Expect::Pass => self.prove_pass(lossy, &mut wanted),
        }
        let threshold = |(count, at_least)| Threshold::new(count, at_least);
        wanted.into_iter().map(threshold).collect()
    }

    fn prove_control(&self, wanted: &mut Vec<(Count, u64)>) {
        if let Self::PowerCut(_, PowerCut { nested: 1.., .. }) = self {
            // What a second cut must show, the first must not show before.
            wanted.push((Count::NestedStates, 1));
        }
        match self {
            Self::PowerCut(Cuttable::Program(_), _) => {
                wanted.extend([(Count::CrashStates, 1), (Count::Activity, 1)]);
            }
            Self::PowerCut(..) => wanted.extend([(Count::CrashStates, 1), (Count::Acks, 1)]),
            Self::Flakey(_) => wanted.extend([(Count::FaultsFired, 1), (Count::Acks, 1)]),
            // The flipped bit; without one a wrong filesystem is the control.
            Self::Distribution(program) if program.damage => {
                wanted.push((Count::FaultsFired, 1));
            }
            Self::Conformance(_) => wanted.push((Count::Calls, 1)),
            Self::NamedChecks => wanted.push((Count::NamedChecks, NAMED_CHECKS)),
            Self::Initdb
            | Self::Load(_)
            | Self::Writers(_)
            | Self::Distribution(_)
            | Self::Program(_) => {}
        }
    }

    fn prove_pass(&self, lossy: bool, wanted: &mut Vec<(Count, u64)>) {
        match self {
            // initdb of PostgreSQL 15 makes 966 files; far fewer is no initdb.
            Self::Initdb => wanted.push((Count::FilesVerified, 500)),
            Self::Load(load) => {
                wanted.extend([(Count::Rows, load.rows.get().into()), (Count::Updates, 1)]);
            }
            Self::Writers(writers) => wanted.extend([
                (Count::FilesWritten, writers.files()),
                (Count::FilesVerified, writers.files()),
            ]),
            Self::Flakey(_) => wanted.extend([(Count::FaultsFired, 1), (Count::Acks, 1)]),
            Self::Distribution(program) => program.prove(wanted),
            Self::NamedChecks => wanted.push((Count::NamedChecks, NAMED_CHECKS)),
            Self::Conformance(conformance) => conformance.prove(wanted),
            Self::PowerCut(workload, cut) => {
                cut.prove(lossy, wanted);
                workload.prove(wanted);
            }
            Self::Program(program) => program.prove(wanted),
        }
    }
}

impl PowerCut {
    fn prove(&self, lossy: bool, wanted: &mut Vec<(Count, u64)>) {
        if self.fsck {
            wanted.push((Count::FsckRuns, 1));
        }
        if self.nested > 0 {
            wanted.push((Count::NestedStates, 1));
        }
        match &self.cuts {
            Cuts::Seeded(cuts) => {
                let cuts = u64::from(cuts.get());
                wanted.extend([
                    (Count::Cuts, cuts),
                    (Count::CrashStates, cuts * u64::from(STATES_PER_CUT)),
                ]);
                if lossy {
                    // Four in five: a cut right after a flush drops nothing.
                    wanted.push((Count::DroppedCompletedCuts, (cuts * 4 / 5).max(1)));
                }
            }
            Cuts::At(_) => wanted.extend([(Count::Cuts, 1), (Count::CrashStates, 1)]),
            Cuts::Everywhere => {
                wanted.extend([
                    (Count::Cuts, 1),
                    (Count::CrashStates, STATES_PER_CUT.into()),
                ]);
                if lossy {
                    wanted.push((Count::DroppedCompletedCuts, 1));
                }
            }
        }
    }
}

impl Cuttable {
    fn prove(&self, wanted: &mut Vec<(Count, u64)>) {
        match self {
            Self::PostgresLedger(_) => wanted.extend([
                (Count::Acks, 1),
                (Count::Served, 1),
                (Count::Checkpoints, 1),
                (Count::WalRecycled, 1),
                (Count::CheckpointCuts, 1),
            ]),
            Self::PageFsync => wanted.push((Count::Acks, 1)),
            Self::Program(program) => program.prove(wanted),
        }
    }
}

impl Program {
    /// Whether it comes with the testbed: it ends by itself, after as much work
    /// as the scenario says, and is judged by what was promised to a cut.
    pub fn is_built_in(&self) -> bool {
        matches!(self.judge, Judge::Store(_))
    }

    /// All of its operations; none where it cannot be told which to carry out.
    pub fn all_operations(&self) -> Operations {
        Operations::all(self.operations.map_or(0, NonZeroU32::get))
    }

    fn prove(&self, wanted: &mut Vec<(Count, u64)>) {
        match &self.judge {
            Judge::Store(store) => store.prove(wanted),
            Judge::Files { .. } => wanted.extend([(Count::Acks, 1), (Count::FilesVerified, 1)]),
            // An acknowledgement without a write is a finding, so either will do.
            Judge::Check { .. } => wanted.extend([(Count::Activity, 1), (Count::CheckRuns, 1)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_once() {
        let argv = Argv::new(
            ["{dir}/x", "{{seed}}", "{no}", "{dir", "{dir}{seed}"]
                .map(str::to_owned)
                .into(),
        );
        let values = [("dir", "{seed}"), ("seed", "7")];
        assert_eq!(
            argv.filled(&values),
            ["{seed}/x", "{7}", "{no}", "{dir", "{seed}7"]
        );
    }
}
