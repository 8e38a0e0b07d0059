//! A report of every kind of thing, with all that a stranger could write into it.

use std::collections::BTreeMap;

use super::{Explorations, page as rendered};
use crate::{
    report::{
        Broken, ClassOf, Epoch, Exploration, Failure, LeftOut, Part, Report, ScenarioResult,
        Verdict, exploration, tests,
    },
    scenario::Counts,
};

/// The page of all of it.
pub(crate) fn page() -> String {
    let (report, explorations) = everything();
    rendered(&report, &explorations)
}

/// What a name or a program's output could hold.
pub(crate) const HOSTILE: &str =
    "<script>alert(1)</script> & \"quoted\" 'so' \u{1b}[31m \u{202e}txt \u{fffd}";

pub(crate) fn everything() -> (Report, Explorations) {
    let kept = "page-power-cut::debian13::ext4::native";
    let broke = "store-power-cut::debian13::xfs::a-mount-with-a-name-that-is-far-too-long-to-fit";
    let mut small = tests::passed("page-power-cut::debian13::ext4::plugpull-fs");
    let mut counts = Counts::default();
    counts.add_named("skipped_mandatory", 12);
    small.counts = counts;
    let mut control = tests::passed("control-lying-disk::debian13::ext4::native");
    control.control = true;
    control.because = Some("caught by ledger".into());
    control.failures.push(Failure {
        oracle: "ledger".into(),
        detail: format!(
            "{}@e3-77aa0112: page 5 was acknowledged and is old",
            control.name
        ),
        repro: "cargo xtask repro 77aa0112".into(),
        ..Failure::default()
    });
    let mut part = tests::passed("shared::debian13::ext4::native");
    part.part = Some(Part::States("2/4".parse().expect("a shard")));
    part.because = Some("part 2/4 of its states: judged when the parts are merged".into());
    let mut hung = tests::passed("postgres-load::debian12::btrfs::native");
    hung.verdict = Verdict::Infra;
    hung.because = Some("the guest hung in phase init: no hello within 60 s".into());
    let mut spared = tests::passed(kept);
    spared.counts.add_named("pruned_looks", 60);
    let report = tests::report(vec![
        spared,
        small,
        control,
        part,
        hung,
        failed(broke),
        tests::passed("writers-250::debian13::ext4::native"),
    ]);
    let explorations = BTreeMap::from([
        (kept.to_owned(), Ok(drawn(0, 0))),
        (broke.to_owned(), Ok(drawn(7, 40))),
        (
            "shared::debian13::ext4::native".to_owned(),
            Err("EOF while parsing".into()),
        ),
    ]);
    (report, explorations)
}

fn failed(name: &str) -> ScenarioResult {
    let mut failed = tests::passed(name);
    failed.image = "debian13".into();
    failed.lower = "xfs".into();
    failed.mount = name.rsplit("::").next().unwrap_or_default().into();
    failed.about = format!("What was acknowledged is there {HOSTILE}");
    failed.verdict = Verdict::Fail;
    failed.because = Some("found by check, ledger".into());
    let repro = "cargo xtask repro 14942aa6e410".to_owned();
    let finding = |oracle: &str, detail: String| Failure {
        oracle: oracle.into(),
        detail,
        repro: repro.clone(),
        ..Failure::default()
    };
    failed.failures = vec![
        finding(
            "ledger",
            format!(
                "{name}@e410-14942aa6: key users/7 was acknowledged with value 3fa9 and is absent"
            ),
        ),
        finding(
            "ledger",
            format!(
                "{name}@e410-14942aa6: of 9 pending writes at event 2114, it is enough to lose \
                 request 811, a write of 4096 bytes at byte 1048576"
            ),
        ),
        finding(
            "ledger",
            "and of 6 more states, such as e411-77aa, e412-8b01, e412-9cc0".into(),
        ),
        finding(
            "check",
            format!("the check said:\n  {HOSTILE}\n  second line"),
        ),
    ];
    failed
}

/// 40 epochs of 50 events; with broken and unseen states on request.
fn drawn(broken: u64, unseen: u64) -> Exploration {
    let columns = 100;
    let column = |of: fn(u64) -> u64| (0..columns).map(of).collect::<Vec<_>>();
    let planned = column(|n| if n < 5 { 0 } else { 3 + n * 7 % 11 });
    let mut left = unseen;
    let mut kept = planned.clone();
    let mut bad = vec![0; columns as usize];
    for (at, kept) in kept.iter_mut().enumerate() {
        if at % 9 == 8 && bad.iter().sum::<u64>() < broken {
            bad[at] = 1;
            *kept -= 1;
        }
        let fewer = left.min(*kept / 2);
        *kept -= fewer;
        left -= fewer;
    }
    let epochs = (1..=40).map(|n| Epoch {
        first: n,
        last: n,
        until: n * 50,
        writes: 12 + n % 5,
        planned: 9 + n % 13,
        kept: 9 + n % 13 - u64::from(broken > n),
        broken: u64::from(broken > n),
    });
    let class = |name: &str, mandatory, possible, drawn, planned| ClassOf {
        class: name.into(),
        mandatory,
        possible: Some(possible),
        drawn,
        planned,
        kept: planned - u64::from(broken > 0),
        broken: u64::from(broken > 0),
    };
    let named = (0..broken).map(|n| Broken {
        state: format!("e{}-{:08x}", 400 + n, 345_678 * (n + 1)),
        cut: 2114 + n,
        class: "all-but-one".into(),
        oracle: "ledger".into(),
    });
    Exploration {
        schema: exploration::SCHEMA,
        events: 2000,
        from: 100,
        totals: BTreeMap::from(
            [
                ("writes", 531),
                ("bytes", 2_174_976),
                ("flushes", 40),
                ("acknowledged", 212),
                ("pending", 9),
                ("marks", 6),
                ("served", 31),
            ]
            .map(|(name, n)| (name.to_owned(), n)),
        ),
        events_each: 20,
        columns: BTreeMap::from([
            ("bytes".to_owned(), column(|n| n * 37 % 13 * 4096)),
            ("pending".to_owned(), column(|n| n % 10)),
            ("flushes".to_owned(), column(|n| u64::from(n % 5 == 0) * 2)),
            (
                "acknowledged".to_owned(),
                column(|n| if n < 6 { 0 } else { 1 + n % 3 }),
            ),
            ("served".to_owned(), column(|n| u64::from(n % 3 == 1))),
            ("marks".to_owned(), column(|n| u64::from(n % 20 == 7))),
        ]),
        states: exploration::States {
            planned,
            kept,
            broken: bad,
        },
        epochs: epochs.collect(),
        epochs_total: 40,
        situations: 80,
        classes: vec![
            class("none", true, 80, 80, 41),
            class("all", true, 80, 68, 55),
            class("one-only", false, 531, 531, 380),
            class("torn", false, 90_210, 300, 288),
        ],
        left_out: vec![
            LeftOut {
                why: "left a content that was planned already, which is looked at once and judged \
                      under every promise it can meet"
                    .into(),
                count: 215,
            },
            LeftOut {
                why: "are possible and did not fit in the budget of states".into(),
                count: 89_922,
            },
        ],
        unseen_because: "were planned and belong to other shards".into(),
        broken: named.collect(),
        plan: "ab".repeat(32),
    }
}
