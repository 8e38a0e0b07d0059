//! `junit.xml`: a failure is a broken promise, an error is Infra.

use std::time::Duration;

use quick_junit::{
    NonSuccessKind, Report as Junit, SerializeError, TestCase, TestCaseStatus, TestSuite,
};

use super::{Report, ScenarioResult, Verdict};

/// The report as JUnit XML. It holds no host name and no time of day.
///
/// # Errors
/// When the XML writer fails.
pub fn junit(report: &Report) -> Result<String, SerializeError> {
    let mut junit = Junit::new("plugpull");
    junit.set_time(seconds(report.seconds));
    let mut suite = TestSuite::new("vm");
    suite.add_property(("seed", report.seed.to_string().as_str()));
    suite.add_property(("profile", report.profile.to_string().as_str()));
    suite.add_property(("shard", report.shard.as_str()));
    suite.add_property(("accel", report.accel.as_str()));
    suite.add_test_cases(report.scenarios.iter().map(case));
    junit.add_test_suite(suite);
    junit.to_string()
}

fn case(result: &ScenarioResult) -> TestCase {
    let mut status = match result.verdict {
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Verdict::Infra => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    if result.verdict != Verdict::Pass {
        status.set_type(result.word());
        status.set_message(result.because.as_deref().unwrap_or_default());
        let told = result
            .failures
            .iter()
            .map(|f| format!("{}: {}\n{}\n", f.oracle, f.detail, f.repro));
        status.set_description(told.collect::<String>());
    }
    let mut case = TestCase::new(result.name.as_str(), status);
    case.set_classname(result.scenario());
    case.set_time(seconds(result.seconds));
    case
}

/// A result file may hold any number; a duration may not.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Failure, tests};

    #[test]
    fn failures_and_infra_are_told_apart() {
        let good = tests::passed("writers-250::debian13::ext4::native");
        let mut bad = tests::passed("postgres-load::debian13::ext4::native");
        bad.verdict = Verdict::Fail;
        bad.because = Some("found by answers".into());
        bad.failures = vec![Failure {
            oracle: "answers".into(),
            detail: "sum was <3> \u{1b}[31mnot 4".into(),
            repro: "cargo xtask repro 1a2b".into(),
            ..Failure::default()
        }];
        let mut hung = tests::passed("postgres-initdb::debian13::ext4::native");
        hung.verdict = Verdict::Infra;
        hung.because = Some("the guest hung in phase init".into());
        hung.seconds = f64::NAN;
        let xml = junit(&tests::report(vec![good, bad, hung])).expect("written");
        insta::assert_snapshot!(xml);
    }
}
