//! Joins the reports of shards to the report of the whole, with every verdict derived anew.

use std::collections::{BTreeMap, BTreeSet};

use super::{Evidence, ImageUsed, Part, Planned, Report, SCHEMA, ScenarioResult, Verdict};
use crate::select::Shard;

/// Reports that are no shards of one run: a mistake in the call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(pub String);

fn unfit<T>(why: String) -> Result<T, Unfit> {
    Err(Unfit(why))
}

/// The whole, of reports by the names of their runs.
///
/// A shard that is missing makes the whole infra; what the others found stays found.
///
/// # Errors
/// [`Unfit`]: two of a kind, or of different runs.
pub fn merge(reports: &[(String, Report)]) -> Result<Report, Unfit> {
    let Some((first_run, first)) = reports.first() else {
        return unfit("name the runs to merge".into());
    };
    let mut by_shard: BTreeMap<Shard, &(String, Report)> = BTreeMap::new();
    let mut images: BTreeMap<&str, &ImageUsed> = BTreeMap::new();
    for named in reports {
        let (run, report) = named;
        let differs = |what: &str, a: &dyn std::fmt::Display, b: &dyn std::fmt::Display| {
            format!("{run} has the {what} {a}, and {first_run} has {b}: they are not one run")
        };
        if report.schema != SCHEMA {
            return unfit(format!(
                "{run} has a report of the schema {}, and {SCHEMA} is known",
                report.schema
            ));
        }
        if report.seed != first.seed {
            return unfit(differs("seed", &report.seed, &first.seed));
        }
        if report.profile != first.profile {
            return unfit(differs("profile", &report.profile, &first.profile));
        }
        for image in &report.images {
            let other = images.entry(&image.name).or_insert(image);
            if (&other.kernel, &other.packages_hash) != (&image.kernel, &image.packages_hash) {
                return unfit(format!(
                    "the image {} of {run} has other packages than that of another shard: they \
                     are not one run",
                    image.name
                ));
            }
        }
        let shard = of_shard(run, report)?;
        if let Some((other, _)) = by_shard.insert(shard, named) {
            return unfit(format!("{other} and {run} are both shard {shard}"));
        }
    }
    let counts: BTreeSet<u32> = by_shard.keys().map(|shard| shard.of().1).collect();
    let count = match counts.iter().collect::<Vec<_>>()[..] {
        [count] => *count,
        _ => {
            let shards: Vec<_> = by_shard.keys().map(ToString::to_string).collect();
            return unfit(format!(
                "these are shards of different numbers of shards: {}",
                shards.join(", ")
            ));
        }
    };
    let missing = (1..=count)
        .filter_map(|index| format!("{index}/{count}").parse().ok())
        .filter(|shard| !by_shard.contains_key(shard))
        .collect();
    let each = || by_shard.values().map(|(_, report)| report);
    let mut phases: BTreeMap<String, f64> = BTreeMap::new();
    for (phase, seconds) in each().flat_map(|report| &report.phases) {
        *phases.entry(phase.clone()).or_default() += seconds;
    }
    let words = |of: fn(&Report) -> &str| -> String {
        // A shard to which nothing fell has prepared nothing.
        let words: BTreeSet<&str> = each().map(of).filter(|word| !word.is_empty()).collect();
        words.into_iter().collect::<Vec<_>>().join(", ")
    };
    Ok(Report {
        schema: SCHEMA,
        seed: first.seed,
        profile: first.profile,
        shard: Shard::ALL.to_string(),
        shards: by_shard.keys().copied().collect(),
        missing,
        accel: words(|report| &report.accel),
        qemu: words(|report| &report.qemu),
        images: images.into_values().cloned().collect(),
        verdict: Verdict::Infra,
        seconds: each().map(|report| report.seconds).fold(0.0, f64::max),
        phases,
        scenarios: scenarios(&by_shard)?,
    }
    .finish())
}

fn of_shard(run: &str, report: &Report) -> Result<Shard, Unfit> {
    let recorded = |of: &ScenarioResult| of.part == Some(Part::Recording);
    if report.scenarios.iter().any(recorded) {
        return unfit(format!(
            "{run} made recordings and judged nothing; give it to `--recordings`"
        ));
    }
    if !report.shards.is_empty() {
        return unfit(format!("{run} is merged already"));
    }
    let shard = report.shard.parse();
    shard.map_err(|bad: crate::select::BadShard| Unfit(format!("{run}: {bad}")))
}

fn scenarios(by_shard: &BTreeMap<Shard, &(String, Report)>) -> Result<Vec<ScenarioResult>, Unfit> {
    let mut cases: BTreeMap<&str, Vec<(Shard, &str, &ScenarioResult)>> = BTreeMap::new();
    for (shard, (run, report)) in by_shard {
        for result in &report.scenarios {
            let of = cases.entry(&result.name).or_default();
            of.push((*shard, run, result));
        }
    }
    cases.into_values().map(|parts| joined(&parts)).collect()
}

/// One case, of all that the shards have of it.
fn joined(parts: &[(Shard, &str, &ScenarioResult)]) -> Result<ScenarioResult, Unfit> {
    let (_, first_run, first) = parts[0];
    let name = &first.name;
    if let [(shard, _, only)] = parts
        && only.part.is_none_or(|part| part != Part::States(*shard))
    {
        return match only.part {
            None => Ok((*only).clone()),
            Some(_) => unfit(format!("{first_run}: {name} is a part of another shard")),
        };
    }
    for (shard, run, result) in parts {
        if result.part != Some(Part::States(*shard)) {
            return unfit(format!(
                "{name} is in {first_run} and, whole, in {run}: it was run twice"
            ));
        }
        let asked = |of: &ScenarioResult| Planned {
            part: None,
            ..Planned::of(of)
        };
        if asked(result) != asked(first) {
            return unfit(format!(
                "{name} was asked to show another thing in {run} than in {first_run}"
            ));
        }
    }
    let mut evidence = Evidence {
        unasked: first.unasked.clone(),
        ..Evidence::default()
    };
    let mut infra = Vec::new();
    for (shard, _, result) in parts {
        evidence.counts.merge(&result.counts);
        for (phase, seconds) in &result.phases {
            *evidence.phases.entry(phase.clone()).or_default() += seconds;
        }
        evidence.seconds = evidence.seconds.max(result.seconds);
        evidence.unasked.retain(|of| result.unasked.contains(of));
        evidence.failures.extend(result.failures.iter().cloned());
        infra.extend(
            result
                .infra
                .iter()
                .map(|why| format!("shard {shard}: {why}")),
        );
    }
    let count = parts[0].0.of().1;
    let here: BTreeSet<u32> = parts.iter().map(|(shard, ..)| shard.of().0).collect();
    let missing = (1..=count).filter(|index| !here.contains(index));
    infra.extend(missing.map(|index| format!("the states of shard {index}/{count} are missing")));
    evidence.infra = (!infra.is_empty()).then(|| infra.join("; "));
    let planned = Planned {
        part: None,
        ..Planned::of(first)
    };
    Ok(planned.result(evidence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::{Failure, tests},
        scenario::{Count, OracleName, Profile, Threshold},
    };

    const CASE: &str = "page-power-cut::debian13::ext4::native";

    fn shard(text: &str) -> Shard {
        text.parse().expect("a shard")
    }

    /// A case of which a shard looked at so many states.
    fn part(of: &str, states: u64, control: bool) -> ScenarioResult {
        let whole = Planned::of(&tests::passed(CASE));
        let planned = Planned {
            part: Some(Part::States(shard(of))),
            caught_by: control.then_some(OracleName::Ledger),
            thresholds: vec![Threshold {
                count: Count::CrashStates,
                at_least: 100,
                floor: 30,
            }],
            ..whole
        };
        let mut evidence = Evidence::default();
        evidence.counts.add(Count::CrashStates, states);
        planned.result(evidence)
    }

    fn run(of: &str, scenarios: Vec<ScenarioResult>) -> (String, Report) {
        let report = Report {
            shard: of.to_owned(),
            ..tests::report(scenarios)
        };
        (format!("run-{}", &of[..1]), report.finish())
    }

    fn said(runs: &[(String, Report)]) -> String {
        merge(runs).expect_err("unfit").to_string()
    }

    #[test]
    fn parts_prove_together_what_none_proves_alone() {
        let runs = [
            run("1/2", vec![part("1/2", 40, false)]),
            run(
                "2/2",
                vec![part("2/2", 60, false), tests::passed("other::a::b::c")],
            ),
        ];
        assert!(runs.iter().all(|(_, of)| of.verdict == Verdict::Pass));
        let whole = merge(&runs).expect("one run");
        assert_eq!(whole.verdict, Verdict::Pass);
        assert_eq!(whole.scenarios.len(), 2);
        let case = &whole.scenarios[1];
        assert_eq!(
            (case.crash_states, case.part, case.word()),
            (100, None, "pass")
        );
        let short = [
            run("1/2", vec![part("1/2", 40, false)]),
            run("2/2", vec![part("2/2", 59, false)]),
        ];
        assert_eq!(merge(&short).expect("one run").verdict, Verdict::Infra);
    }

    #[test]
    fn a_control_is_caught_by_any_of_its_parts() {
        let mut caught = part("1/2", 50, true);
        caught.failures.push(Failure {
            oracle: "ledger".into(),
            detail: "key 7".into(),
            ..Failure::default()
        });
        let rest = || run("2/2", vec![part("2/2", 50, true)]);
        let whole = merge(&[run("1/2", vec![caught]), rest()]).expect("one run");
        assert_eq!(whole.scenarios[0].word(), "caught");
        let missed = merge(&[run("1/2", vec![part("1/2", 50, true)]), rest()]);
        assert_eq!(missed.expect("one run").verdict, Verdict::Fail);
    }

    #[test]
    fn a_missing_shard_is_infra_and_a_finding_outweighs_it() {
        let mut bad = part("1/3", 100, false);
        let runs = [run("1/3", vec![bad.clone()]), run("3/3", Vec::new())];
        let whole = merge(&runs).expect("one run");
        assert_eq!(whole.missing, [shard("2/3")]);
        assert_eq!(whole.verdict, Verdict::Infra);
        let why = whole.scenarios[0].because.clone().unwrap_or_default();
        assert!(why.contains("the states of shard 2/3 are missing"), "{why}");
        bad.failures.push(Failure {
            oracle: "ledger".into(),
            detail: "key 7".into(),
            ..Failure::default()
        });
        let whole = merge(&[run("1/3", vec![bad])]).expect("one run");
        assert_eq!(whole.verdict, Verdict::Fail);
        let dealt = merge(&[run("1/2", vec![tests::passed("a::b::c::d")])]);
        assert_eq!(dealt.expect("one run").verdict, Verdict::Infra);
    }

    #[test]
    fn what_are_not_shards_of_one_run_is_refused_by_name() {
        let one = || run("1/2", vec![part("1/2", 40, false)]);
        let two = || run("2/2", vec![part("2/2", 60, false)]);
        let changed = |change: fn(&mut Report)| {
            let mut other = two();
            change(&mut other.1);
            said(&[one(), other])
        };
        assert_eq!(said(&[]), "name the runs to merge");
        let twice = ("again".to_owned(), one().1);
        assert_eq!(
            said(&[one(), two(), twice]),
            "run-1 and again are both shard 1/2"
        );
        assert!(changed(|of| of.seed = 7).contains("run-2 has the seed 7, and run-1 has 42"));
        assert!(changed(|of| of.profile = Profile::Full).contains("has the profile full"));
        assert!(changed(|of| of.schema = 9).contains("a report of the schema 9"));
        let packages = changed(|of| of.images[0].packages_hash = "cd".into());
        assert!(
            packages.contains("the image debian13 of run-2"),
            "{packages}"
        );
        assert!(changed(|of| of.shard = "2/3".into()).contains("1/2, 2/3"));
        assert!(changed(|of| of.shard = "x".into()).contains("is no shard"));
        let twice = changed(|of| of.scenarios[0].part = None);
        assert!(twice.contains("it was run twice"), "{twice}");
        let recorded = changed(|of| of.scenarios[0].part = Some(Part::Recording));
        assert!(recorded.contains("made recordings"), "{recorded}");
        let merged = merge(&[one(), two()]).expect("one run");
        assert!(said(&[("whole".into(), merged)]).contains("is merged already"));
    }
}
