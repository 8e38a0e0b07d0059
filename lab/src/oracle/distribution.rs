//! Judges programs of the guest's distribution by their own words and by what
//! they left.

use plugpull_protocol::workload::{ProgramRun, Step};

use super::{Finding, Findings, first_lines};
use crate::scenario::OracleName;

/// How many lines of a program's output are told.
const LINES: usize = 8;

/// Every program ended with 0 and said what it should, and nothing that it
/// left is missing, different or nobody's.
pub fn as_planned(oracle: OracleName, run: &ProgramRun) -> Vec<Finding> {
    let mut findings = Findings::default();
    for step in &run.steps {
        if let Some(told) = problem(step) {
            findings.add(oracle, told);
        }
    }
    for told in &run.first {
        findings.add(oracle, told.as_str());
    }
    let more = run.differences.saturating_sub(run.first.len() as u64);
    if more > 0 {
        findings.add(oracle, format!("and {more} more differences"));
    }
    findings.told()
}

fn problem(step: &Step) -> Option<String> {
    let Step {
        what,
        expected,
        exited,
    } = step;
    if !exited.success() {
        let said = first_lines(&format!("{}\n{}", exited.stdout, exited.stderr), LINES);
        return Some(format!(
            "{what} ended with {}: {}",
            exited.code,
            said.trim()
        ));
    }
    match expected {
        Some(expected) if exited.stdout != *expected => {
            let said = first_lines(&exited.stdout, LINES);
            Some(format!("{what} said {said:?} instead of {expected:?}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use plugpull_protocol::Exited;

    use super::*;

    fn step(code: i32, expected: Option<&str>, stdout: &str) -> Step {
        Step {
            what: "git fsck".into(),
            expected: expected.map(str::to_owned),
            exited: Exited {
                code,
                stdout: stdout.into(),
                stderr: "bad object".into(),
                elapsed_ms: 1,
            },
        }
    }

    fn told(run: &ProgramRun) -> Vec<String> {
        let found = as_planned(OracleName::Repository, run);
        found.into_iter().map(|finding| finding.detail).collect()
    }

    #[test]
    fn failures_other_words_and_differences_are_found() {
        let fine = [""; 0];
        let mut run = ProgramRun {
            steps: vec![step(0, None, "whatever"), step(0, Some(""), "")],
            ..ProgramRun::default()
        };
        assert_eq!(told(&run), fine);
        run.steps.push(step(0, Some(""), "dangling blob"));
        run.steps.push(step(3, Some(""), ""));
        run.differences = 3;
        run.first = vec!["file-1 is missing".into()];
        assert_eq!(
            told(&run),
            [
                "git fsck said \"dangling blob\" instead of \"\"",
                "git fsck ended with 3: bad object",
                "file-1 is missing",
                "and 2 more differences",
            ]
        );
    }
}
