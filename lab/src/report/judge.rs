//! From what was seen to a verdict, and from the files of a run to its results.

use std::collections::BTreeMap;

use super::{Expected, Failure, Part, Proof, ScenarioResult, Verdict};
use crate::{
    scenario::{
        BadFile, Case, CaseName, Count, Counts, Door, Expect, Named, OracleName, Threshold,
    },
    select::Shard,
    sharing::Sharing,
};

/// What a run of one case saw.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Complaints of oracles.
    pub failures: Vec<Failure>,
    /// What was counted.
    pub counts: Counts,
    /// Where the time went, in seconds.
    pub phases: BTreeMap<String, f64>,
    /// Wall time.
    pub seconds: f64,
    /// What went wrong with the machinery.
    pub infra: Option<String>,
    /// The oracles that should have judged it and were never asked.
    pub unasked: Vec<OracleName>,
}

/// A verdict, and why it is not a plain pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// One sentence.
    pub because: Option<String>,
}

/// The one rule for verdicts.
///
/// A complaint is a finding whatever else went wrong, so it outweighs Infra.
/// For a control it is the other way round: only a clean catch counts.
pub fn judge(
    (caught_by, door): (Option<OracleName>, Option<Door>),
    proofs: &[Proof],
    failures: &[Failure],
    infra: Option<&str>,
) -> Judgement {
    let is = |verdict, because: String| Judgement {
        verdict,
        because: Some(because),
    };
    let complaints = || {
        let mut names: Vec<&str> = failures.iter().map(|f| f.oracle.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    };
    let unmet = || {
        let unmet = proofs.iter().filter(|proof| !proof.met());
        let said: Vec<_> = unmet
            .map(|p| {
                format!(
                    "{} {} (at least {} needed)",
                    p.seen,
                    p.count.label(),
                    p.at_least
                )
            })
            .collect();
        (!said.is_empty()).then(|| format!("no proof of effect: {}", said.join("; ")))
    };
    match (caught_by, infra) {
        (None, _) if !failures.is_empty() => {
            is(Verdict::Fail, format!("found by {}", complaints()))
        }
        (_, Some(infra)) => is(Verdict::Infra, infra.to_owned()),
        (None, None) => match unmet() {
            Some(unmet) => is(Verdict::Infra, unmet),
            None => Judgement {
                verdict: Verdict::Pass,
                because: None,
            },
        },
        (Some(oracle), None) => match unmet() {
            Some(unmet) => is(Verdict::Infra, unmet),
            None if failures.iter().any(|f| f.oracle == oracle.name()) => {
                match door.map(|door| (door, doors_of(failures, oracle))) {
                    Some((door, found)) if found != [door] => {
                        is(Verdict::Fail, misplaced(door, &found))
                    }
                    Some((door, _)) => is(
                        Verdict::Pass,
                        format!("caught by {oracle}, at the door {door}"),
                    ),
                    None => is(Verdict::Pass, format!("caught by {oracle}")),
                }
            }
            None if failures.is_empty() => is(
                Verdict::Fail,
                format!("the control was not caught by {oracle}"),
            ),
            None => is(
                Verdict::Fail,
                format!(
                    "the control was caught by {}, not by {oracle}",
                    complaints()
                ),
            ),
        },
    }
}

/// The doors that an oracle's findings are laid at, each once.
fn doors_of(failures: &[Failure], oracle: OracleName) -> Vec<Door> {
    let of = failures.iter().filter(|f| f.oracle == oracle.name());
    let mut doors: Vec<Door> = of.filter_map(|failure| failure.door).collect();
    doors.sort_unstable();
    doors.dedup();
    doors
}

fn misplaced(door: Door, found: &[Door]) -> String {
    let found: Vec<&str> = found.iter().map(|door| door.name()).collect();
    match found.is_empty() {
        true => format!("the control was laid at no door instead of {door}"),
        false => format!(
            "the control was laid at {}, not at {door}",
            found.join(", ")
        ),
    }
}

/// An oracle that was named and never asked proves nothing. Where another found something, that
/// is said instead.
fn silent(evidence: &Evidence) -> Option<String> {
    let names: Vec<_> = evidence.unasked.iter().map(ToString::to_string).collect();
    (!names.is_empty() && evidence.failures.is_empty())
        .then(|| format!("no judgement was given by: {}", names.join(", ")))
}

/// A part cannot have the proof that the whole must have, and a control need not be caught in
/// this part of it: both are judged when the parts are joined. What was found is found.
fn judge_part(part: Shard, caught_by: Option<OracleName>, evidence: &Evidence) -> Judgement {
    let judgement = judge(
        (None, None),
        &[],
        match caught_by {
            Some(_) => &[],
            None => &evidence.failures,
        },
        evidence.infra.as_deref(),
    );
    Judgement {
        because: judgement.because.or_else(|| {
            let part = format!("part {part} of its states: judged when the parts are merged");
            Some(part)
        }),
        ..judgement
    }
}

/// What is known of a case before it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Planned {
    /// `scenario::image::lower::mount`.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// The guest image.
    pub image: String,
    /// The lower filesystem.
    pub lower: String,
    /// The mount.
    pub mount: String,
    /// The oracle that must catch a control.
    pub caught_by: Option<OracleName>,
    /// The door that it must be laid at.
    pub door: Option<Door>,
    /// The oracles that judge it.
    pub oracles: Vec<OracleName>,
    /// What must have happened.
    pub thresholds: Vec<Threshold>,
    /// Where it is not the whole case: which part.
    pub part: Option<Part>,
}

impl From<&Case> for Planned {
    fn from(case: &Case) -> Self {
        Self {
            name: case.name.to_string(),
            about: case.scenario.about.clone(),
            image: case.image.to_string(),
            lower: case.lower.name.clone(),
            mount: case.mount.name.clone(),
            caught_by: match case.scenario.expect {
                Expect::Pass => None,
                Expect::Caught(by) => Some(by),
            },
            door: case.scenario.door,
            oracles: case.story.oracles().to_vec(),
            thresholds: case.thresholds.clone(),
            part: None,
        }
    }
}

impl Planned {
    /// A file that is no scenario, as the test that fails for it.
    pub fn malformed(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            about: "a scenario file that cannot be read".into(),
            image: String::new(),
            lower: String::new(),
            mount: String::new(),
            caught_by: None,
            door: None,
            oracles: Vec::new(),
            thresholds: Vec::new(),
            part: None,
        }
    }

    /// What a result that is there already was planned to show; the thresholds of a part are
    /// those of the whole.
    pub(super) fn of(result: &ScenarioResult) -> Self {
        let thresholds = result.proofs.iter().map(|proof| Threshold {
            count: proof.count,
            at_least: proof.at_least,
            floor: proof.floor,
        });
        Self {
            name: result.name.clone(),
            about: result.about.clone(),
            image: result.image.clone(),
            lower: result.lower.clone(),
            mount: result.mount.clone(),
            caught_by: result.caught_by,
            door: result.door,
            oracles: result.oracles.clone(),
            thresholds: thresholds.collect(),
            part: result.part,
        }
    }

    /// What is done of it here.
    pub fn shared(mut self, sharing: &Sharing) -> Self {
        let case = CaseName::new(self.name.as_str());
        let part = sharing.part_of(&case);
        if sharing.record_only {
            self.part = Some(Part::Recording);
            self.caught_by = None;
            self.oracles.clear();
            // What the workload itself is to have done.
            self.thresholds.retain(|of| of.count.is_of_the_recording());
        } else if !part.is_all() {
            self.part = Some(Part::States(part));
        }
        self
    }

    /// The result of a file that is no scenario.
    pub fn malformed_result(name: &str, bad: &BadFile) -> ScenarioResult {
        Self::malformed(name).result(Evidence {
            failures: vec![Failure {
                oracle: "scenario-file".into(),
                detail: bad.to_string(),
                ..Failure::default()
            }],
            ..Evidence::default()
        })
    }

    /// Judge what was seen.
    pub fn result(&self, evidence: Evidence) -> ScenarioResult {
        let counts = &evidence.counts;
        let proof = |threshold: &Threshold| Proof {
            count: threshold.count,
            at_least: threshold.at_least,
            floor: threshold.floor,
            seen: counts.get(threshold.count),
        };
        let proofs: Vec<_> = self.thresholds.iter().map(proof).collect();
        let infra = evidence.infra.as_deref();
        let silent = silent(&evidence);
        let judgement = match self.part {
            Some(Part::States(part)) => judge_part(part, self.caught_by, &evidence),
            Some(Part::Recording) => judge((None, None), &proofs, &evidence.failures, infra),
            None => {
                let infra = infra.or(silent.as_deref());
                judge(
                    (self.caught_by, self.door),
                    &proofs,
                    &evidence.failures,
                    infra,
                )
            }
        };
        let control = self.caught_by.is_some();
        let counts = evidence.counts;
        ScenarioResult {
            name: self.name.clone(),
            about: self.about.clone(),
            verdict: judgement.verdict,
            expect: if control {
                Expected::Fail
            } else {
                Expected::Pass
            },
            control,
            caught_by: self.caught_by,
            seconds: evidence.seconds,
            image: self.image.clone(),
            lower: self.lower.clone(),
            mount: self.mount.clone(),
            crash_states: counts.get(Count::CrashStates),
            unique_states: counts.get(Count::UniqueStates),
            faults_fired: counts.get(Count::FaultsFired),
            oracle_checks: counts.get(Count::OracleChecks),
            counts,
            oracles: self.oracles.clone(),
            proofs,
            phases: evidence.phases,
            failures: evidence.failures,
            infra: evidence.infra,
            because: judgement.because,
            part: self.part,
            door: self.door,
            unasked: evidence.unasked,
        }
    }

    fn infra(&self, because: impl Into<String>) -> ScenarioResult {
        self.result(Evidence {
            infra: Some(because.into()),
            ..Evidence::default()
        })
    }
}

/// What a run directory holds of one test.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Nothing: the test never began.
    Nothing,
    /// It began and left no result.
    Started,
    /// It left something that is no result.
    Garbage(String),
    /// Its result.
    Result(Box<ScenarioResult>),
}

/// Every planned case with what became of it. Nothing that a test wrote is
/// taken on trust: what it was asked to show comes from the plan, and the
/// verdict is derived again here.
pub fn join<'a>(
    planned: impl IntoIterator<Item = &'a Planned>,
    mut found: impl FnMut(&str) -> Found,
) -> Vec<ScenarioResult> {
    let became = |plan: &Planned| match found(&plan.name) {
        Found::Nothing => plan.infra("the test never started"),
        Found::Started => {
            plan.infra("the test started and left no result: it crashed or was killed")
        }
        Found::Garbage(why) => plan.infra(format!("the test's result cannot be read: {why}")),
        Found::Result(result) => plan.result(Evidence {
            failures: result.failures,
            counts: result.counts,
            phases: result.phases,
            seconds: result.seconds,
            infra: result.infra,
            unasked: result.unasked,
        }),
    };
    planned.into_iter().map(became).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path, sync::Arc};

    use super::*;
    use crate::scenario::{ImageName, Profile, load_dir};

    fn proof(seen: u64) -> Proof {
        Proof {
            count: Count::CrashStates,
            at_least: 30,
            floor: 12,
            seen,
        }
    }

    fn by(oracle: &str) -> Failure {
        Failure {
            oracle: oracle.into(),
            detail: "key 7".into(),
            ..Failure::default()
        }
    }

    fn said(control: bool, seen: u64, failures: &[&str], infra: Option<&str>) -> (Verdict, String) {
        let failures: Vec<_> = failures.iter().map(|name| by(name)).collect();
        let caught_by = control.then_some(OracleName::Ledger);
        let judgement = judge((caught_by, None), &[proof(seen)], &failures, infra);
        (judgement.verdict, judgement.because.unwrap_or_default())
    }

    #[test]
    fn a_control_with_a_door_is_laid_there_and_nowhere_else() {
        let failure = |door| Failure {
            door,
            ..by("ledger")
        };
        let wanted = (Some(OracleName::Ledger), Some(Door::Device));
        for (doors, verdict, because) in [
            (
                &[None, Some(Door::Device)][..],
                Verdict::Pass,
                "caught by ledger, at the door device",
            ),
            (
                &[None],
                Verdict::Fail,
                "the control was laid at no door instead of device",
            ),
            (
                &[Some(Door::Program), Some(Door::Device)],
                Verdict::Fail,
                "the control was laid at device, program, not at device",
            ),
        ] {
            let failures: Vec<_> = doors.iter().copied().map(failure).collect();
            let judgement = judge(wanted, &[proof(30)], &failures, None);
            assert_eq!(judgement.verdict, verdict);
            assert_eq!(judgement.because.as_deref(), Some(because));
        }
    }

    #[test]
    fn a_scenario_passes_only_with_proof_and_without_complaint() {
        use Verdict::{Fail, Infra, Pass};
        assert_eq!(said(false, 30, &[], None), (Pass, String::new()));
        assert_eq!(
            said(false, 29, &[], None),
            (
                Infra,
                "no proof of effect: 29 crash states (at least 30 needed)".into()
            )
        );
        assert_eq!(
            said(false, 30, &["log", "ledger", "log"], None),
            (Fail, "found by ledger, log".into())
        );
        assert_eq!(said(false, 0, &["ledger"], None).0, Fail);
        assert_eq!(
            said(false, 30, &[], Some("the guest hung")),
            (Infra, "the guest hung".into())
        );
        assert_eq!(said(false, 30, &["ledger"], Some("the guest hung")).0, Fail);
    }

    #[test]
    fn a_control_passes_only_when_its_own_oracle_catches_it() {
        use Verdict::{Fail, Infra, Pass};
        assert_eq!(
            said(true, 30, &["ledger"], None),
            (Pass, "caught by ledger".into())
        );
        assert_eq!(said(true, 30, &["log", "ledger"], None).0, Pass);
        assert_eq!(
            said(true, 30, &[], None),
            (Fail, "the control was not caught by ledger".into())
        );
        assert_eq!(
            said(true, 30, &["log"], None),
            (Fail, "the control was caught by log, not by ledger".into())
        );
        assert_eq!(said(true, 29, &["ledger"], None).0, Infra);
        assert_eq!(said(true, 30, &["ledger"], Some("the guest hung")).0, Infra);
    }

    fn plan(name: &str) -> Planned {
        Planned {
            caught_by: Some(OracleName::Ledger),
            thresholds: vec![Threshold {
                count: Count::OracleChecks,
                at_least: 1,
                floor: 1,
            }],
            ..Planned::malformed(name)
        }
    }

    #[test]
    fn whatever_left_no_result_is_infra() {
        let plans = ["never", "killed", "torn", "done"].map(plan);
        let joined = join(&plans, |name| match name {
            "never" => Found::Nothing,
            "killed" => Found::Started,
            "torn" => Found::Garbage("EOF while parsing".into()),
            _ => {
                let mut evidence = Evidence {
                    failures: vec![by("ledger")],
                    ..Evidence::default()
                };
                evidence.counts.add(Count::OracleChecks, 1);
                Found::Result(Box::new(plan("done").result(evidence)))
            }
        });
        let shown: Vec<_> = joined.iter().map(|r| (r.name.as_str(), r.word())).collect();
        assert_eq!(
            shown,
            [
                ("never", "infra"),
                ("killed", "infra"),
                ("torn", "infra"),
                ("done", "caught")
            ]
        );
        let why = joined[1].because.as_deref().unwrap_or_default();
        assert_eq!(
            why,
            "the test started and left no result: it crashed or was killed"
        );
    }

    #[test]
    fn a_test_cannot_give_itself_a_verdict() {
        let plans = [plan("liar")];
        let joined = join(&plans, |_| {
            let mut lie = plan("liar").result(Evidence::default());
            lie.verdict = Verdict::Pass;
            lie.control = false;
            lie.caught_by = None;
            lie.proofs.clear();
            Found::Result(Box::new(lie))
        });
        assert_eq!(joined[0].verdict, Verdict::Infra);
        assert!(joined[0].control);
    }

    /// Every threshold of every case of the suite is one that can fail: one
    /// below it and the run proves nothing.
    #[test]
    fn no_case_of_the_suite_passes_below_any_of_its_thresholds() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let images = image_names_for_tests();
        let mut seen = BTreeSet::new();
        for loaded in load_dir(&dir.join("tests/scenarios"), &images).expect("readable") {
            let scenario = Arc::new(loaded.scenario.unwrap_or_else(|bad| panic!("{bad}")));
            for case in Profile::ALL.iter().flat_map(|p| scenario.cases(*p)) {
                let plan = Planned::from(&case);
                let with = |short: Option<Count>| {
                    let mut evidence = Evidence::default();
                    evidence
                        .failures
                        .extend(plan.caught_by.map(|oracle| Failure {
                            door: plan.door,
                            ..by(oracle.name())
                        }));
                    for threshold in &plan.thresholds {
                        let less = u64::from(short == Some(threshold.count));
                        // Activity is the sum of two and never counted itself.
                        let counted = match threshold.count {
                            Count::Activity => Count::Writes,
                            other => other,
                        };
                        evidence.counts.add(counted, threshold.at_least - less);
                    }
                    plan.result(evidence)
                };
                assert_eq!(with(None).verdict, Verdict::Pass, "{}", plan.name);
                for threshold in &plan.thresholds {
                    let result = with(Some(threshold.count));
                    assert_eq!(result.verdict, Verdict::Infra, "{} {threshold}", plan.name);
                    seen.insert(threshold.count);
                }
            }
        }
        // The proofs that the suite promises are all asked for somewhere.
        for count in [
            Count::CrashStates,
            Count::DroppedCompletedCuts,
            Count::CheckpointCuts,
            Count::Checkpoints,
            Count::WalRecycled,
            Count::Acks,
            Count::Served,
            Count::FaultsFired,
            Count::Rows,
            Count::Updates,
            Count::FilesWritten,
            Count::FilesVerified,
            Count::CheckRuns,
            Count::Activity,
            Count::OracleChecks,
        ] {
            assert!(seen.contains(&count), "{count}");
        }
    }

    fn image_names_for_tests() -> [ImageName; 3] {
        ["debian12", "debian13", "debian13-backports"].map(ImageName::new)
    }

    #[test]
    fn a_malformed_file_is_a_failing_test() {
        let bad = BadFile {
            path: "bad.toml".into(),
            text: String::new(),
            problems: Vec::new(),
        };
        let result = Planned::malformed_result("bad", &bad);
        assert_eq!(
            (result.name.as_str(), result.verdict),
            ("bad", Verdict::Fail)
        );
    }
}
