//! The canonical report: what is the same in every run that goes well.
//!
//! Snapshots hold it. It names no clock, pid, path, seed, kernel or count that
//! a scheduler decides; thresholds are those of the scenario's smallest
//! profile, so one snapshot serves every profile and every cell of the matrix.

use std::fmt::Write as _;

use super::{Expected, ScenarioResult, Verdict};

/// The canonical report of one case.
pub fn canonical(result: &ScenarioResult) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, result);
    out
}

fn write(out: &mut String, result: &ScenarioResult) -> std::fmt::Result {
    let oracles: Vec<_> = result.oracles.iter().map(ToString::to_string).collect();
    writeln!(out, "scenario: {}", result.scenario())?;
    match (result.expect, result.caught_by) {
        (Expected::Fail, Some(by)) => writeln!(out, "expect: caught by {by}")?,
        _ => writeln!(out, "expect: pass")?,
    }
    match (result.verdict, &result.because) {
        (Verdict::Pass, Some(because)) => writeln!(out, "verdict: {because}")?,
        (verdict, _) => writeln!(out, "verdict: {verdict}")?,
    }
    writeln!(out, "oracles: {}", oracles.join(", "))?;
    // Which other oracles notice a control depends on timing.
    if !result.control && !result.failures.is_empty() {
        let mut names: Vec<_> = result.failures.iter().map(|f| f.oracle.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        writeln!(out, "failed: {}", names.join(", "))?;
    }
    writeln!(out, "proof of effect:")?;
    for proof in &result.proofs {
        let met = if proof.met() { "met" } else { "not met" };
        writeln!(out, "  {} ≥ {}: {met}", proof.count.label(), proof.floor)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::{
        report::{Evidence, Failure, Planned},
        scenario::{Count, OracleName, Threshold},
    };

    fn plan(caught_by: Option<OracleName>) -> Planned {
        Planned {
            name: "postgres-power-cut::debian13::ext4::native".into(),
            image: "debian13".into(),
            caught_by,
            oracles: vec![OracleName::Recovery, OracleName::Ledger],
            thresholds: vec![Threshold {
                count: Count::CrashStates,
                at_least: 300,
                floor: 12,
            }],
            ..Planned::malformed("")
        }
    }

    fn seen(states: u64, oracles: &[&str]) -> Evidence {
        let failure = |oracle: &&str| Failure {
            oracle: (*oracle).into(),
            detail: format!("pid {}", std::process::id()),
            repro: "/tmp/x".into(),
            ..Failure::default()
        };
        let mut evidence = Evidence {
            failures: oracles.iter().map(failure).collect(),
            seconds: 12.5,
            ..Evidence::default()
        };
        evidence.counts.add(Count::CrashStates, states);
        evidence
    }

    #[test]
    fn canonical_reports() {
        let cases = [
            (None, seen(301, &[])),
            (None, seen(299, &[])),
            (None, seen(300, &["recovery", "ledger", "ledger"])),
            (Some(OracleName::Ledger), seen(300, &["recovery", "ledger"])),
            (Some(OracleName::Ledger), seen(300, &["recovery"])),
        ];
        let texts = cases.map(|(by, evidence)| canonical(&plan(by).result(evidence)));
        assert_snapshot!(texts.join("---\n"));
    }

    #[test]
    fn two_good_runs_have_one_report() {
        let mut other = plan(None).result(seen(977, &[]));
        other.name = "postgres-power-cut::debian12::xfs::plugpull-fs".into();
        assert_eq!(
            canonical(&plan(None).result(seen(300, &[]))),
            canonical(&other)
        );
    }
}
