//! Judges what plugpull-conformance said of a mount.

use plugpull_protocol::Exited;

use super::{Finding, Findings};
use crate::scenario::OracleName;

/// How many lines of what it says are told.
const LINES: usize = 40;
/// How many of them from the end of a script: that is where the difference is.
const LAST_LINES: usize = 12;

/// What a run of plugpull-conformance came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Everything it looked at is equal.
    Equal(Compared),
    /// It found a difference.
    Different(Compared),
    /// It could not look: neither a pass nor a failure.
    Unusable,
}

/// How much was compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compared {
    /// Sequences of calls.
    pub sequences: u64,
    /// Calls in all of them.
    pub calls: u64,
}

/// Make sense of its end: 0 is equal, 1 is different, anything else is trouble.
pub fn said(exited: &Exited) -> Said {
    match exited.code {
        0 => Said::Equal(compared(&exited.stdout)),
        1 => Said::Different(compared(&exited.stdout)),
        _ => Said::Unusable,
    }
}

/// The last of its lines `differential: N sequences, M calls`.
fn compared(stdout: &str) -> Compared {
    let counts = |line: &str| {
        let (sequences, calls) = line
            .strip_prefix("differential: ")?
            .split_once(" sequences, ")?;
        Some(Compared {
            sequences: sequences.parse().ok()?,
            calls: calls.strip_suffix(" calls")?.parse().ok()?,
        })
    };
    stdout.lines().rev().find_map(counts).unwrap_or_default()
}

/// The difference that it found, as it tells it.
pub fn as_the_lower_filesystem(exited: &Exited) -> Vec<Finding> {
    let mut findings = Findings::default();
    if let Said::Different(_) = said(exited) {
        let at = exited.stdout.find("FAILED: ").unwrap_or(0);
        let told = both_ends(&exited.stdout[at..]);
        findings.add(OracleName::Conformance, told);
    }
    findings.told()
}

/// A script that is too long loses its middle.
fn both_ends(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    if lines.len() > LINES {
        let (from, to) = (LINES - LAST_LINES, lines.len() - LAST_LINES);
        let left_out = format!("({} lines left out)", to - from);
        lines.splice(from..to, [left_out]);
    }
    lines.join("\n")
}

/// How many named checks were made: its line `check: N checks`.
pub fn checks_made(exited: &Exited) -> u64 {
    let count = |line: &str| {
        let count = line.strip_prefix("check: ")?.strip_suffix(" checks")?;
        count.parse().ok()
    };
    exited.stdout.lines().rev().find_map(count).unwrap_or(0)
}

/// The named checks that failed, each with what it says.
pub fn as_the_checks_say(exited: &Exited) -> Vec<Finding> {
    let mut findings = Findings::default();
    if let Said::Different(_) = said(exited) {
        for failed in exited
            .stdout
            .lines()
            .filter_map(|l| l.strip_prefix("FAIL "))
        {
            findings.add(OracleName::Checks, failed.to_owned());
        }
        if !exited.stdout.contains("FAIL ") {
            findings.add(
                OracleName::Checks,
                String::from("a check failed and said nothing"),
            );
        }
    }
    findings.told()
}

/// How many operations of fsx went well: its line
/// `fsx: N operations in T: exit status: 0`.
pub fn fsx_operations(exited: &Exited) -> u64 {
    let count = |line: &str| {
        let (count, _) = line.strip_prefix("fsx: ")?.split_once(" operations in ")?;
        count.parse().ok()
    };
    let told = exited.stdout.lines().rev().find_map(count);
    told.filter(|_| exited.success()).unwrap_or(0)
}

/// What fsx found: a byte that is not the one last written, or a call that
/// failed.
pub fn as_fsx_wrote(exited: &Exited) -> Vec<Finding> {
    let mut findings = Findings::default();
    if exited.code == 1 {
        let said = format!("{}{}", exited.stdout, exited.stderr);
        // A log of operations ends with what is wrong.
        let lines: Vec<_> = said.lines().collect();
        let from = lines.len().saturating_sub(LINES);
        findings.add(OracleName::Fsx, lines[from..].join("\n"));
    }
    findings.told()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exited(code: i32, stdout: &str) -> Exited {
        Exited {
            code,
            stdout: stdout.into(),
            stderr: String::new(),
            elapsed_ms: 1,
        }
    }

    #[test]
    fn counts_are_the_last_told_and_a_difference_is_found() {
        let text = "differential: seed 7\ndifferential: 5 sequences, 100 calls\n\
                    differential: 9 sequences, 190 calls\n  known difference x: 3 times\n";
        let counts = Compared {
            sequences: 9,
            calls: 190,
        };
        let equal = exited(0, text);
        assert_eq!(said(&equal), Said::Equal(counts));
        assert_eq!(as_the_lower_filesystem(&equal), []);
        let different = exited(
            1,
            &format!("{text}FAILED: seed 15 shrunk to 2 calls:\n  x\n"),
        );
        assert_eq!(said(&different), Said::Different(counts));
        let found = as_the_lower_filesystem(&different);
        assert!(found[0].detail.starts_with("FAILED: seed 15"), "{found:?}");
    }

    #[test]
    fn a_long_script_is_told_with_its_difference() {
        let text: String = (1..=100).map(|n| format!("line {n}\n")).collect();
        let told = both_ends(&text);
        assert!(told.starts_with("line 1\n"), "{told}");
        assert!(
            told.contains("line 28\n(60 lines left out)\nline 89\n"),
            "{told}"
        );
        assert!(told.ends_with("line 100"), "{told}");
        assert_eq!(both_ends("a\nb"), "a\nb");
    }

    #[test]
    fn each_check_that_fails_is_found() {
        let text = "pass a\nFAIL b: the mount says 1\nlimit c: why\nFAIL d: no\ncheck: 4 checks\n";
        assert_eq!(checks_made(&exited(1, text)), 4);
        let found = as_the_checks_say(&exited(1, text));
        let details: Vec<_> = found.iter().map(|f| f.detail.as_str()).collect();
        assert_eq!(details, ["b: the mount says 1", "d: no"]);
        assert_eq!(as_the_checks_say(&exited(0, "pass a\n")), []);
        assert_eq!(as_the_checks_say(&exited(1, "")).len(), 1);
        assert_eq!(as_the_checks_say(&exited(69, "")), []);
    }

    #[test]
    fn fsx_counts_only_when_all_is_well() {
        let text = "fsx: \"fsx\" \"-N\"\nfsx: 5000 operations in 2.5s: exit status: 0\n";
        assert_eq!(fsx_operations(&exited(0, text)), 5000);
        assert_eq!(as_fsx_wrote(&exited(0, text)), []);
        assert_eq!(fsx_operations(&exited(1, text)), 0);
        assert_eq!(as_fsx_wrote(&exited(1, text)).len(), 1);
        assert_eq!(as_fsx_wrote(&exited(69, "")), []);
    }

    #[test]
    fn what_could_not_look_is_no_verdict() {
        for code in [2, 69, 101, 137] {
            assert_eq!(said(&exited(code, "")), Said::Unusable);
            assert_eq!(as_the_lower_filesystem(&exited(code, "")), []);
        }
        assert_eq!(said(&exited(0, "")), Said::Equal(Compared::default()));
    }
}
