//! The verdict table: what a person reads at the end of a run, 80 columns
//! wide, the same on a terminal and in a pipe but for colour.

use std::{fmt::Write as _, io::IsTerminal};

use super::{Report, ScenarioResult, Verdict};
use crate::text::{WIDTH, push_wrapped};

/// Whether the table is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Text and nothing else.
    Plain,
    /// The verdicts in colour.
    Colour,
}

impl Look {
    /// Colour on a terminal, unless `NO_COLOR` is set (no-color.org) or the
    /// terminal is a dumb one.
    pub fn of(out: &impl IsTerminal) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if out.is_terminal() && !set("NO_COLOR") && !dumb {
            Self::Colour
        } else {
            Self::Plain
        }
    }

    fn paint(self, verdict: Verdict, text: &str) -> String {
        let code = match verdict {
            Verdict::Pass => 32,
            Verdict::Fail => 31,
            Verdict::Infra => 33,
        };
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }
}

const HEAD: [&str; 8] = [
    "verdict", "image", "lower", "mount", "states", "checks", "faults", "time",
];

/// Columns that hold names and may be shortened, and the first with numbers.
const NAMES: std::ops::Range<usize> = 1..4;
const NUMBERS: usize = 4;

/// The table of a whole run.
pub fn table(report: &Report, look: Look) -> String {
    let mut out = String::new();
    let rows: Vec<_> = report.scenarios.iter().map(row).collect();
    let widths = widths(&rows);
    let head = line(&HEAD.map(str::to_owned), &widths);
    let _ = writeln!(out, "  {}", head.trim_end());
    let mut scenario = "";
    for (result, row) in report.scenarios.iter().zip(&rows) {
        if result.scenario() != scenario {
            scenario = result.scenario();
            let title = format!("{scenario}: {}", clean(&result.about));
            push_wrapped(&mut out, &title, "", "  ");
        }
        let text = line(row, &widths);
        let (verdict, rest) = text.split_at(widths[0]);
        let _ = writeln!(out, "  {}{rest}", look.paint(result.verdict, verdict));
        if let skipped @ 1.. = result.skipped_mandatory() {
            let text = format!(
                "{skipped} mandatory states were skipped: the budget has no room for all that an \
                 exploration looks at first"
            );
            push_wrapped(&mut out, &text, "    ", "    ");
        }
        push_troubles(&mut out, result);
    }
    push_summary(&mut out, report, look);
    out
}

fn row(result: &ScenarioResult) -> [String; 8] {
    let count = |n: u64| {
        if n == 0 {
            "-".to_owned()
        } else {
            n.to_string()
        }
    };
    let name = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            clean(text)
        }
    };
    [
        result.word().to_owned(),
        name(&result.image),
        name(&result.lower),
        name(&result.mount),
        count(result.crash_states),
        count(result.oracle_checks),
        count(result.faults_fired),
        clock(result.seconds),
    ]
}

/// Widths that fit every cell; where the line is too long, the widest name
/// columns give way.
fn widths(rows: &[[String; 8]]) -> [usize; 8] {
    let mut widths = HEAD.map(|head| head.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    // Two blanks before the line, two between columns.
    while 2 + widths.iter().sum::<usize>() + 2 * (widths.len() - 1) > WIDTH {
        let Some(widest) = widths[NAMES].iter_mut().max().filter(|width| **width > 6) else {
            break;
        };
        *widest -= 1;
    }
    widths
}

fn line(cells: &[String; 8], widths: &[usize; 8]) -> String {
    let mut out = String::new();
    for (n, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        if n > 0 {
            out.push_str("  ");
        }
        let cell = shortened(cell, width);
        let _ = match n < NUMBERS {
            true => write!(out, "{cell:<width$}"),
            false => write!(out, "{cell:>width$}"),
        };
    }
    out
}

fn shortened(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// How many complaints of one case are listed; the rest stand in the report.
const TROUBLES_MAX: usize = 5;

fn push_troubles(out: &mut String, result: &ScenarioResult) {
    if result.verdict == Verdict::Pass {
        return;
    }
    let because = result.because.as_deref().unwrap_or("no reason given");
    push_wrapped(out, &clean(because), "    ", "    ");
    for failure in result.failures.iter().take(TROUBLES_MAX) {
        for (n, detail) in failure.detail.lines().enumerate() {
            let text = match n {
                0 => format!("{}: {}", failure.oracle, clean(detail)),
                _ => format!("  {}", clean(detail)),
            };
            push_wrapped(out, &text, "    ", "      ");
        }
        if let (Some(door), Some(evidence)) = (failure.door, &failure.evidence) {
            let text = format!("door: {door}: {}", clean(evidence));
            push_wrapped(out, &text, "      ", "        ");
        }
        if !failure.repro.is_empty() {
            // Never broken: it is there to be copied.
            let _ = writeln!(out, "      again: {}", clean(&failure.repro));
        }
    }
    if let Some(more) = result.failures.len().checked_sub(TROUBLES_MAX + 1) {
        let _ = writeln!(out, "    and {} more in report.json", more + 1);
    }
}

fn push_summary(out: &mut String, report: &Report, look: Look) {
    let count = |word: &str| report.scenarios.iter().filter(|s| s.word() == word).count();
    let words = ["pass", "caught", "part", "recorded", "fail", "infra"];
    let counts = words.map(|word| (word, count(word)));
    let counts: Vec<_> = counts
        .iter()
        .filter(|(_, n)| *n > 0)
        .map(|(word, n)| format!("{n} {word}"))
        .collect();
    let counts = match counts.is_empty() {
        true => "no scenario was run".to_owned(),
        false => counts.join(", "),
    };
    let parts = !report.scenarios.is_empty() && report.scenarios.iter().all(|s| s.part.is_some());
    let word = match report.verdict {
        // What is judged when it is merged is not said to have passed.
        Verdict::Pass if parts => report.scenarios[0].word().to_owned(),
        verdict => verdict.to_string(),
    };
    let verdict = look.paint(report.verdict, &word);
    let _ = writeln!(out, "\n{verdict}: {counts} in {}", clock(report.seconds));
    let how = format!(
        "profile {}, seed {}, shard {}, {}, QEMU {}",
        report.profile, report.seed, report.shard, report.accel, report.qemu
    );
    push_wrapped(out, &how, "", "  ");
    if !report.missing.is_empty() {
        let missing: Vec<_> = report.missing.iter().map(ToString::to_string).collect();
        let text = format!("missing: shard {}", missing.join(", "));
        push_wrapped(out, &text, "", "  ");
    }
    for image in &report.images {
        let note = if image.as_locked {
            ""
        } else {
            " (not as locked: the archive moved on)"
        };
        let text = format!("{}: kernel {}{note}", image.name, image.kernel);
        push_wrapped(out, &clean(&text), "", "  ");
    }
    let mut phases = report.phases.clone();
    for scenario in &report.scenarios {
        for (phase, seconds) in &scenario.phases {
            *phases.entry(phase.clone()).or_default() += seconds;
        }
    }
    if !phases.is_empty() {
        let mut phases: Vec<_> = phases.into_iter().collect();
        phases.sort_by(|a, b| b.1.total_cmp(&a.1));
        let spent = phases
            .iter()
            .map(|(phase, s)| format!("{phase} {}", clock(*s)));
        let text = format!(
            "time, summed over all tests: {}",
            spent.collect::<Vec<_>>().join(", ")
        );
        push_wrapped(out, &text, "", "  ");
    }
}

/// Minutes and seconds: `1:23`; tenths below ten seconds: `4.2 s`.
pub(super) fn clock(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    format!("{}:{:02}", whole / 60, whole % 60)
}

/// Text of a guest or a program cannot move the cursor or change colours.
fn clean(text: &str) -> String {
    let safe = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(safe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        report::{Failure, Part, tests},
        scenario::Door,
        select::Shard,
    };

    fn full() -> Report {
        let mut first = tests::passed("postgres-power-cut::debian13-backports::btrfs::plugpull-fs");
        first.image = "debian13-backports".into();
        first.phases.insert("boot".into(), 12.0);
        let second = tests::passed("postgres-power-cut::debian13::ext4::native");
        let mut control = tests::passed("control-lying-disk::debian13::ext4::native");
        control.control = true;
        let mut failed = tests::passed("writers-250::debian13::ext4::native");
        failed.verdict = Verdict::Fail;
        failed.because = Some("found by writers".into());
        failed.mount = "a-mount-with-a-name-that-is-far-too-long".into();
        failed.failures = (0..7)
            .map(|n| Failure {
                oracle: "writers".into(),
                detail: format!("writer {n} found \u{1b}[2Jbytes of another writer in a file of its own, which is long to tell\nand takes a second line"),
                repro: "cargo xtask repro 1a2b3c4d --seed 42 --scenario tests/scenarios/writers-250.toml --keep".into(),
                door: (n == 0).then_some(Door::Program),
                evidence: (n == 0).then(|| "nothing was synced between the begin of a key (event 1) and its ack (event 9)".into()),
            })
            .collect();
        let mut infra = tests::passed("postgres-load::debian12::xfs::native");
        infra.verdict = Verdict::Infra;
        infra.because = Some("the guest hung in phase init".into());
        tests::report(vec![first, second, control, failed, infra])
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let text = table(&full(), Look::Plain);
        for line in text.lines().filter(|line| !line.contains("again: ")) {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(!text.contains('\u{1b}'));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_part_is_not_said_to_have_passed() {
        let mut part = tests::passed("page-power-cut::debian13::ext4::native");
        part.part = Some(Part::States(Shard::ALL));
        let whole = tests::passed("writers-250::debian13::ext4::native");
        let said = |of: &[&ScenarioResult]| {
            let report = tests::report(of.iter().map(|&of| of.clone()).collect());
            let text = table(&report, Look::Plain);
            text.lines()
                .find(|line| line.contains(" in "))
                .map(str::to_owned)
        };
        let only = said(&[&part]).expect("a summary");
        assert!(only.starts_with("part: 1 part in "), "{only}");
        let both = said(&[&part, &whole]).expect("a summary");
        assert!(both.starts_with("pass: 1 pass, 1 part in "), "{both}");
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let coloured = table(&full(), Look::Colour);
        let mut plain = coloured.replace("\x1b[0m", "");
        for code in [31, 32, 33] {
            let paint = format!("\x1b[{code}m");
            assert!(plain.contains(&paint));
            plain = plain.replace(&paint, "");
        }
        assert_eq!(plain, table(&full(), Look::Plain));
    }

    #[test]
    fn times_are_short() {
        let shown = [0.04, 9.94, 9.96, 83.4, 3600.0, f64::NAN, -1.0].map(clock);
        assert_eq!(shown, ["0.0 s", "9.9 s", "0:10", "1:23", "60:00", "?", "?"]);
    }
}
