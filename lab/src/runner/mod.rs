//! Tells a case's story in guests and collects what came of it.
//!
//! A runner acts, counts and asks oracles; it never decides what an
//! observation means. An error out of here is never a failure of the program
//! under test: it is Infra.

mod alike;
mod blame;
mod capsules;
mod chart;
mod conformance;
mod cuts;
mod distribution;
mod everywhere;
mod explore;
mod fewer;
mod flakey;
mod initdb;
mod load;
mod nested;
mod pace;
mod power_cut;
mod repro;
mod smallest;
mod user;
mod whose;
mod worth;
mod writers;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Result;
use plugpull_disk::View;
use plugpull_vm::lock::Slot;
use sha2::{Digest, Sha256};

use crate::{
    base::{Base, Kind, Wanted},
    doors::Laid,
    oracle::Finding,
    scenario::{Case, Count, Counts, Expect, OracleName, Story},
    select::Shard,
    session::{Opening, Session},
    testbed::Testbed,
};

pub use capsules::{Guilty, Kept};
pub use pace::Looked;
pub use power_cut::Progress;
pub use repro::{Again, again, shell_on};

/// What came of a story.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Proof of effect.
    pub counts: Counts,
    /// Where the time went, in seconds by phase.
    pub seconds: BTreeMap<String, f64>,
    /// The oracles that gave at least one judgement.
    pub applied: BTreeSet<OracleName>,
    /// What they found.
    pub failures: Vec<Failure>,
    /// What the console warned of.
    pub warnings: Vec<String>,
    /// The crash states that oracles objected to, in the order of looking.
    pub guilty: Vec<Guilty>,
    /// What became of their capsule; absent where none is made.
    pub capsule: Option<Kept>,
    /// How fast each guest looked at crash states, where several were.
    pub looked: Vec<Looked>,
}

impl Outcome {
    /// Add what came of another part of the story.
    fn merge(&mut self, other: Self) {
        self.counts.merge(&other.counts);
        for (phase, seconds) in other.seconds {
            *self.seconds.entry(phase).or_default() += seconds;
        }
        self.applied.extend(other.applied);
        self.failures.extend(other.failures);
        self.warnings.extend(other.warnings);
        self.guilty.extend(other.guilty);
        self.looked.extend(other.looked);
    }
}

/// A finding, with the crash state it was made in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which oracle.
    pub oracle: OracleName,
    /// What it says.
    pub detail: String,
    /// The state, where there is one.
    pub state: Option<String>,
    /// At whose door it is laid.
    pub laid: Option<Laid>,
}

/// Tell a case's story; artefacts go below `dir`.
///
/// # Errors
/// When the story could not be told to its end: the host's or the guest's
/// trouble, never the program's failure. What was collected until then stays
/// in `outcome`.
pub fn run(bed: &Testbed, case: &Case, dir: &Path, outcome: &mut Outcome) -> Result<()> {
    let mut stage = Stage {
        bed,
        case,
        dir,
        seed: seed_of(bed.setup().seed, case),
        outcome,
    };
    match &case.story {
        Story::Initdb => initdb::run(&mut stage),
        Story::Load(load) => load::run(&mut stage, load),
        Story::Writers(writers) => writers::run(&mut stage, writers),
        Story::Flakey(connections) => flakey::run(&mut stage, *connections),
        Story::Conformance(conformance) => conformance::run(&mut stage, conformance),
        Story::NamedChecks => conformance::named_checks(&mut stage),
        Story::Distribution(program) => distribution::run(&mut stage, program),
        Story::PowerCut(workload, cut) => power_cut::run(&mut stage, workload, cut),
        Story::Program(program) => user::run_to_its_end(&mut stage, program),
    }
}

/// The case's own seed: cases of one run must not repeat each other's choices.
fn seed_of(seed: u64, case: &Case) -> u64 {
    let hash = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(case.name.as_str())
        .finalize();
    u64::from_le_bytes(std::array::from_fn(|i| hash[i]))
}

/// What every story needs.
struct Stage<'a> {
    bed: &'a Testbed,
    case: &'a Case,
    dir: &'a Path,
    seed: u64,
    outcome: &'a mut Outcome,
}

impl<'a> Stage<'a> {
    /// The base disk of this case, made now if it is missing.
    fn base(&mut self, kind: Kind) -> Result<Base> {
        let start = Instant::now();
        let (case, disk) = (self.case, self.case.scenario.disk);
        let base = Base::ensure(
            self.bed,
            Wanted {
                image: &case.guest,
                lower: &case.lower,
                disk,
                kind,
            },
        )?;
        self.spent("base", start);
        Ok(base)
    }

    /// A guest on a disk of this content.
    fn session(&mut self, name: &str, view: View, record: bool) -> Result<Session<'a>> {
        self.session_in(None, name, view, record)
    }

    /// The same, in a slot that was taken for it.
    fn session_in(
        &mut self,
        slot: Option<Slot>,
        name: &str,
        view: View,
        record: bool,
    ) -> Result<Session<'a>> {
        let start = Instant::now();
        let logs = self.dir.join(name);
        let opening = Opening {
            image: &self.case.guest,
            spec: self.case.scenario.disk,
            view,
            log: self.log(name),
            record,
            seed: self.seed,
            logs: &logs,
            slot,
        };
        let session = Session::start(self.bed, opening)?;
        if let Some(taken_for) = self.case.scenario.taken_for {
            session.take_for(taken_for)?;
        }
        self.spent("clone", start);
        Ok(session)
    }

    /// Where the disk log of a session goes.
    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.disklog"))
    }

    fn count(&mut self, what: Count, n: u64) {
        self.outcome.counts.add(what, n);
    }

    fn spent(&mut self, phase: &str, since: Instant) {
        self.took(phase, since.elapsed());
    }

    fn took(&mut self, phase: &str, time: Duration) {
        *self.outcome.seconds.entry(phase.to_owned()).or_default() += time.as_secs_f64();
    }

    /// Which part of the states of a recording that was given to it is looked at here: a
    /// recording that was made here is nobody else's.
    fn part(&self) -> Shard {
        self.bed.setup().sharing.part_of(&self.case.name)
    }

    /// Whether what is so for all parts together is counted here: for one of them.
    fn counts_the_whole(&self) -> bool {
        self.part().contains(self.case.name.as_str())
    }

    /// Take what these oracles said.
    fn judged(&mut self, oracles: &[OracleName], findings: Vec<Finding>, state: Option<&str>) {
        self.outcome.applied.extend(oracles);
        self.count(Count::OracleChecks, oracles.len() as u64);
        for Finding { oracle, detail } in findings {
            let state = state.map(str::to_owned);
            self.outcome.failures.push(Failure {
                oracle,
                detail,
                state,
                laid: None,
            });
        }
    }

    /// Whether the oracle that must catch this control has caught it: nothing
    /// more can be learned then.
    fn control_is_caught(&self) -> bool {
        match self.case.scenario.expect {
            Expect::Caught(oracle) => self
                .outcome
                .failures
                .iter()
                .any(|failure| failure.oracle == oracle),
            Expect::Pass => false,
        }
    }
}
