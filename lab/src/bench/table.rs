//! A sheet as plain text of 80 columns, the same on a terminal and in a pipe.

use std::fmt::Write as _;

use super::figures::{Bound, Figure, Goal, Rate, Setting, Sheet, Unit, Value, wilson};
use crate::text::push_wrapped;

/// Of the column with names; longer ones push the rest to the right.
const NAME: usize = 30;
/// Of the column with medians and ranges.
const VALUE: usize = 26;

/// The sheet as text.
pub fn table(sheet: &Sheet) -> String {
    let mut out = String::new();
    push_wrapped(&mut out, &head(sheet.bench, &sheet.setting), "", "  ");
    for note in &sheet.notes {
        push_wrapped(&mut out, note, "- ", "  ");
    }
    for group in &sheet.groups {
        let _ = writeln!(out);
        push_wrapped(&mut out, &group.title, "", "  ");
        for figure in &group.figures {
            push_figure(&mut out, figure);
        }
    }
    out
}

fn head(bench: &str, setting: &Setting) -> String {
    let Setting {
        kernel,
        qemu,
        accel,
        cores,
        build,
        guest_cpus,
        guest_memory_mib,
    } = setting;
    // The package's version in parentheses stands in the JSON.
    let qemu = qemu.split(" (").next().unwrap_or(qemu);
    format!(
        "bench {bench}: kernel {kernel}, QEMU {qemu}, {accel}, cores: {cores}, {build} build; \
         guests with {guest_cpus} CPU and {guest_memory_mib} MiB; median (min–max)"
    )
}

fn push_figure(out: &mut String, figure: &Figure) {
    let name = &figure.name;
    match &figure.value {
        Value::Sample { unit, summary, .. } => {
            let digits = unit.digits(summary.median);
            let value = format!(
                "{:.digits$}{} ({:.digits$}–{:.digits$})",
                summary.median,
                unit.label(),
                summary.min,
                summary.max
            );
            let n = format!("n={}", summary.n);
            let goal = figure.goal.map(|goal| goal_text(goal, *unit));
            let line = format!("  {name:<NAME$} {value:<VALUE$} {n:<6}");
            let line = line + &goal.unwrap_or_default();
            push_wrapped(out, line.trim_end(), "", "      ");
        }
        Value::Rate(rate) => {
            let line = format!("  {name:<NAME$} {}", rate_text(rate));
            push_wrapped(out, &line, "", "      ");
            let by = rate.by.iter().map(|(oracle, n)| format!("{oracle} {n}"));
            let by: Vec<_> = by.collect();
            if !by.is_empty() {
                push_wrapped(out, &format!("    by {}", by.join(", ")), "", "      ");
            }
            if let Some(why) = rate.infra_because.first() {
                push_wrapped(out, &format!("    infra, the first: {why}"), "", "      ");
            }
        }
    }
}

fn goal_text(goal: Goal, unit: Unit) -> String {
    let met = if goal.met { "ok" } else { "MISSED" };
    let (sign, limit) = match goal.bound {
        Bound::AtMost(limit) => ('≤', limit),
        Bound::AtLeast(limit) => ('≥', limit),
    };
    format!("{sign}{limit}{} {met}", unit.label().trim_end())
}

fn rate_text(rate: &Rate) -> String {
    let mut text = format!("{} of {}", rate.caught, rate.runs);
    if let Some((low, high)) = wilson(rate.caught, rate.runs) {
        let _ = write!(text, " (95 %: {low:.0}–{high:.0} %)");
    }
    if rate.infra > 0 {
        let _ = write!(text, "; {} infra", rate.infra);
    }
    text
}

impl Unit {
    fn label(self) -> &'static str {
        match self {
            Self::Seconds => " s",
            Self::Milliseconds => " ms",
            Self::MegabytesPerSecond => " MB/s",
            Self::PerSecond => "/s",
            Self::Percent => " %",
            Self::Count => "",
        }
    }

    /// Digits behind the point that a number of this size deserves.
    fn digits(self, median: f64) -> usize {
        match self {
            Self::Seconds | Self::PerSecond if median < 10.0 => 2,
            Self::Seconds | Self::MegabytesPerSecond => 1,
            Self::PerSecond if median < 100.0 => 1,
            Self::Percent | Self::Milliseconds => 1,
            Self::PerSecond | Self::Count => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::figures::Group, text::WIDTH};

    fn sheet() -> Sheet {
        let setting = Setting {
            kernel: "6.18.44".into(),
            qemu: "10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)".into(),
            accel: "tcg".into(),
            cores: 2,
            build: "debug",
            guest_cpus: 1,
            guest_memory_mib: 1024,
        };
        let sampled = |name: &str, unit, samples: &[f64]| {
            Figure::sampled(name, unit, samples).expect("there are samples")
        };
        let rate = Rate {
            runs: 25,
            caught: 8,
            infra: 1,
            by: [("exit", 2), ("tree", 8)]
                .map(|(oracle, n)| (oracle.to_owned(), n))
                .into(),
            infra_because: vec!["the guest hung in phase init".into()],
        };
        let note = "a note that is long enough to be broken, because a line has eighty columns";
        let mut sheet = Sheet::new("disk", setting, vec![note.into()]);
        sheet.groups = vec![
            Group {
                title: "sequential".into(),
                figures: vec![
                    sampled("recording disk", Unit::MegabytesPerSecond, &[99.96, 1234.5]),
                    sampled("small writes", Unit::PerSecond, &[412.4, 399.0, 500.0]),
                    sampled("cost against raw file", Unit::Percent, &[-3.0, 12.0, 99.0])
                        .at_most(15.0),
                    sampled("clone to first answer", Unit::Seconds, &[0.612]).at_most(0.5),
                ],
            },
            Group {
                title: "control-fd-as-handle::debian13::ext4::fd-as-handle".into(),
                figures: vec![Figure {
                    name: "caught".into(),
                    value: Value::Rate(rate),
                    goal: None,
                }],
            },
        ];
        sheet
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let text = table(&sheet());
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_json_keeps_every_sample() {
        let json = serde_json::to_value(sheet()).expect("a value");
        let figure = &json["groups"][0]["figures"][2];
        assert_eq!(
            figure["value"]["samples"],
            serde_json::json!([-3.0, 12.0, 99.0])
        );
        assert_eq!(figure["value"]["summary"]["median"], 12.0);
        assert_eq!(figure["goal"]["met"], true);
        let rate = &json["groups"][1]["figures"][0]["value"];
        assert_eq!(
            (&rate["kind"], &rate["caught"]),
            (&"rate".into(), &8.into())
        );
    }
}
