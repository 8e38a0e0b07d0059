//! What a run came to: the types of `report.json`, and the rules that make a
//! verdict out of what was seen.
//!
//! The schema is stable: fields are added, never renamed or removed, and
//! [`SCHEMA`] goes up when an old reader would misread.

pub mod canonical;
pub mod exploration;
pub mod html;
mod judge;
mod junit;
mod merge;
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use exploration::{Broken, ClassOf, Epoch, Exploration, LeftOut, Outcome};
pub use judge::{Evidence, Found, Judgement, Planned, join, judge};
pub use junit::junit;
pub use merge::{Unfit, merge};
pub use table::{Look, table};

use crate::{
    scenario::{Count, Counts, Door, OracleName, Profile},
    select::Shard,
};

/// Version of `report.json`.
pub const SCHEMA: u32 = 1;

/// Its name in the directory of a run.
pub const JSON: &str = "report.json";

/// What became of a scenario or a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As expected; for a control: caught by its oracle.
    Pass,
    /// A promise was broken, or a control was not caught.
    Fail,
    /// Nothing can be said: the machinery failed, or there is no proof that
    /// anything happened.
    Infra,
}

impl Verdict {
    /// The exit code of a run with this verdict; 69 is EX_UNAVAILABLE of
    /// `sysexits.h`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Fail => 1,
            Self::Infra => 69,
        }
    }

    /// Of a whole run. A broken promise outweighs everything else; a run of
    /// nothing proves nothing.
    pub fn of_all(verdicts: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::Infra;
        for (n, verdict) in verdicts.into_iter().enumerate() {
            all = match (all, verdict) {
                (Self::Fail, _) | (_, Self::Fail) => Self::Fail,
                (_, verdict) if n == 0 => verdict,
                (Self::Pass, Self::Pass) => Self::Pass,
                _ => Self::Infra,
            };
        }
        all
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Infra => "infra",
        })
    }
}

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where all randomness came from.
    pub seed: u64,
    /// The profile.
    pub profile: Profile,
    /// `M/N`.
    pub shard: String,
    /// Of a merged report: the shards that it was made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Shard>,
    /// Of a merged report: the shards that are missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Shard>,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// QEMU's version.
    pub qemu: String,
    /// The guest images that were used.
    pub images: Vec<ImageUsed>,
    /// Of the whole run.
    pub verdict: Verdict,
    /// Wall time of the whole run.
    pub seconds: f64,
    /// Where the time outside the scenarios went.
    pub phases: BTreeMap<String, f64>,
    /// In the order of their names.
    pub scenarios: Vec<ScenarioResult>,
}

/// A guest image as it was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUsed {
    /// Its name.
    pub name: String,
    /// `uname -r`.
    pub kernel: String,
    /// SHA-256 over the names, versions and hashes of all packages.
    pub packages_hash: String,
    /// False where the archive no longer had what the lock pins.
    pub as_locked: bool,
}

/// One case of one scenario; also what a test writes as `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScenarioResult {
    /// `scenario::image::lower::mount`.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// Where it is not the whole case: which part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// What became of it.
    pub verdict: Verdict,
    /// `fail` for a control.
    pub expect: Expected,
    /// Whether it is a control.
    pub control: bool,
    /// The oracle that must catch a control.
    pub caught_by: Option<OracleName>,
    /// The door that a control must be laid at, where its file names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<Door>,
    /// Wall time.
    pub seconds: f64,
    /// The guest image.
    pub image: String,
    /// The lower filesystem.
    pub lower: String,
    /// The mount.
    pub mount: String,
    /// Crash states looked at.
    pub crash_states: u64,
    /// Crash states left when equal ones are taken together.
    pub unique_states: u64,
    /// Errors that the fault injection made.
    pub faults_fired: u64,
    /// Judgements that an oracle gave.
    pub oracle_checks: u64,
    /// Everything else that was counted.
    pub counts: Counts,
    /// The oracles that judge this scenario.
    pub oracles: Vec<OracleName>,
    /// Those of them that were never asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unasked: Vec<OracleName>,
    /// What had to be done before the verdict counts, and what was.
    pub proofs: Vec<Proof>,
    /// Where the time went, in seconds.
    pub phases: BTreeMap<String, f64>,
    /// What oracles complained about.
    pub failures: Vec<Failure>,
    /// What went wrong with the machinery.
    pub infra: Option<String>,
    /// Why the verdict is not a plain pass, in one sentence.
    pub because: Option<String>,
}

/// A part of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Its workload was recorded, and nothing was judged.
    Recording,
    /// This part of its states was looked at: nothing is said of the whole before the other
    /// parts are there.
    States(Shard),
}

/// What a scenario's file expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expected {
    /// Every oracle is content.
    Pass,
    /// A control: an oracle complains.
    Fail,
}

/// A threshold and what was counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// What was counted.
    pub count: Count,
    /// How many there had to be.
    pub at_least: u64,
    /// How many there have to be in the scenario's smallest profile.
    pub floor: u64,
    /// How many there were.
    pub seen: u64,
}

impl Proof {
    /// Whether there were enough.
    pub fn met(&self) -> bool {
        self.seen >= self.at_least
    }
}

/// A complaint of an oracle.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which one.
    pub oracle: String,
    /// What was promised and what was there.
    pub detail: String,
    /// The command that shows it again; may be empty.
    pub repro: String,
    /// At whose door it is laid, where there is evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<Door>,
    /// The evidence, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
}

impl Report {
    /// Join the parts and derive the verdict. A shard may be empty; a whole
    /// run may not.
    pub fn finish(mut self) -> Self {
        self.scenarios.sort_by(|a, b| a.name.cmp(&b.name));
        let missing = self.missing.iter().map(|_| Verdict::Infra);
        let verdicts = self.scenarios.iter().map(|s| s.verdict).chain(missing);
        self.verdict = match self.scenarios.is_empty() && self.shard != "1/1" {
            true => Verdict::Pass,
            false => Verdict::of_all(verdicts),
        };
        self
    }
}

impl ScenarioResult {
    /// The scenario's part of the name.
    pub fn scenario(&self) -> &str {
        self.name.split("::").next().unwrap_or(&self.name)
    }

    /// How many states that every exploration looks at first its budget left no room for.
    pub fn skipped_mandatory(&self) -> u64 {
        self.counts.named("skipped_mandatory")
    }

    /// What a table calls the verdict: a control that passed was `caught`.
    pub fn word(&self) -> &'static str {
        match (self.verdict, self.control) {
            (Verdict::Pass, _) if self.part == Some(Part::Recording) => "recorded",
            (Verdict::Pass, _) if self.part.is_some() => "part",
            (Verdict::Pass, true) => "caught",
            (Verdict::Pass, false) => "pass",
            (Verdict::Fail, _) => "fail",
            (Verdict::Infra, _) => "infra",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A result that passed, for tests to spoil.
    pub(crate) fn passed(name: &str) -> ScenarioResult {
        let planned = Planned {
            name: name.into(),
            about: "Acknowledged transactions survive a power cut".into(),
            image: "debian13".into(),
            lower: "ext4".into(),
            mount: "native".into(),
            caught_by: None,
            door: None,
            oracles: vec![OracleName::Recovery, OracleName::Ledger],
            thresholds: Vec::new(),
            part: None,
        };
        let mut evidence = Evidence::default();
        evidence.counts.add(Count::OracleChecks, 36);
        evidence.counts.add(Count::CrashStates, 12);
        evidence.counts.add(Count::Acks, 871);
        evidence.seconds = 83.4;
        planned.result(evidence)
    }

    pub(crate) fn report(scenarios: Vec<ScenarioResult>) -> Report {
        Report {
            schema: SCHEMA,
            seed: 42,
            profile: Profile::Smoke,
            shard: "1/1".into(),
            shards: Vec::new(),
            missing: Vec::new(),
            accel: "tcg".into(),
            qemu: "10.0.2".into(),
            images: vec![ImageUsed {
                name: "debian13".into(),
                kernel: "6.12.0-1-amd64".into(),
                packages_hash: "ab12".into(),
                as_locked: true,
            }],
            verdict: Verdict::Infra,
            seconds: 312.0,
            phases: BTreeMap::from([("templates".into(), 21.0), ("images".into(), 0.5)]),
            scenarios,
        }
        .finish()
    }

    #[test]
    fn a_run_is_as_good_as_its_worst_and_nothing_is_no_pass() {
        use Verdict::{Fail, Infra, Pass};
        for (verdicts, all) in [
            (&[][..], Infra),
            (&[Pass], Pass),
            (&[Infra], Infra),
            (&[Pass, Pass], Pass),
            (&[Pass, Infra], Infra),
            (&[Infra, Pass], Infra),
            (&[Fail, Infra, Pass], Fail),
            (&[Infra, Pass, Fail], Fail),
        ] {
            assert_eq!(
                Verdict::of_all(verdicts.iter().copied()),
                all,
                "{verdicts:?}"
            );
        }
        let codes = [Pass, Fail, Infra].map(Verdict::exit_code);
        assert_eq!(codes, [0, 1, 69]);
    }

    #[test]
    fn an_empty_run_is_infra_and_an_empty_shard_is_not() {
        assert_eq!(report(Vec::new()).verdict, Verdict::Infra);
        let shard = Report {
            shard: "3/4".into(),
            ..report(Vec::new())
        };
        assert_eq!(shard.finish().verdict, Verdict::Pass);
    }

    /// Frozen: other people's programs read this.
    #[test]
    fn the_schema_is_stable() {
        let mut report = report(vec![passed("postgres-power-cut::debian13::ext4::native")]);
        report.scenarios[0].failures.push(Failure {
            oracle: "ledger".into(),
            detail: "key 7 was acknowledged and is absent".into(),
            repro: "cargo xtask repro 1a2b".into(),
            door: Some(Door::Device),
            evidence: Some("request 7 was lost".into()),
        });
        let json = serde_json::to_string_pretty(&report).expect("serialises");
        insta::assert_snapshot!(json);
        let back: Report = serde_json::from_str(&json).expect("reads");
        assert_eq!(back, report);
    }
}
