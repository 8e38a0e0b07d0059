//! The goals of the filesystem, and whether a bench meets them: arithmetic on results.
//!
//! Judged is what a user gets by default: through the device, and where the kernel offers
//! it over io_uring; only the goal
//! about kernel passthrough looks at the mode of that name.

use serde::Serialize;

use super::{
    lines::{NameWork, Work},
    results::{LineResult, Results, ServerResult},
    servers::Role,
};
use crate::bench::figures::Summary;

/// What all users have: `auto` once there is such a mode.
const DEFAULT: [&str; 2] = ["plugpull-fs auto", "plugpull-fs cached"];
/// What those have who switch it on.
const IO_URING: &str = "plugpull-fs io_uring";
const PASSTHROUGH: &str = "plugpull-fs passthrough";
/// The peer that some goals name; the better of its two ways counts.
const PASSTHROUGH_HP: &str = "passthrough_hp";
/// Memory after walking a tree of any size.
const WALK_KIB: u64 = 128 << 10;

/// One of our servers, held against every goal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Judged {
    /// Its name.
    pub server: String,
    /// The goals.
    pub goals: Vec<Reached>,
}

/// A goal, held against results.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reached {
    /// What is to be reached.
    pub goal: String,
    /// Every value that it was held against.
    pub points: Vec<Point>,
}

/// A goal on one line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Point {
    /// The line.
    pub line: String,
    /// Ours by theirs, or whatever the goal is about.
    pub value: f64,
    /// The same in each round, at worst and at best; equal where there are no rounds.
    pub range: [f64; 2],
    /// What it is held against.
    pub limit: f64,
    /// Whether it is reached by the median.
    pub met: bool,
}

impl Point {
    /// Whether some round says otherwise than the median.
    pub fn is_noisy(&self) -> bool {
        (self.range[0] < self.limit) != (self.range[1] < self.limit)
    }
}

impl Reached {
    /// How many points are met. None of none is not a goal reached.
    pub fn met(&self) -> usize {
        self.points.iter().filter(|point| point.met).count()
    }
}

/// The verdicts on those that were measured.
pub fn judge(results: &Results) -> Vec<Judged> {
    let is_measured = |name: &&str| results.servers.iter().any(|server| server.name == *name);
    let default = DEFAULT.into_iter().find(is_measured);
    let servers = default
        .into_iter()
        .chain([IO_URING].into_iter().filter(is_measured));
    servers
        .map(|ours| Judged {
            server: ours.to_owned(),
            goals: reached(results, ours),
        })
        .collect()
}

/// Every goal, also those of which nothing was measured.
fn reached(results: &Results, ours: &str) -> Vec<Reached> {
    let named = |work| matches!(work, NameWork::Stat | NameWork::Rename | NameWork::Unlink);
    vec![
        over(results, "1.0 × the best peer on every line", |line| {
            ratio(line.server(ours)?, line.best_peer()?, 1.0)
        }),
        over(
            results,
            "3 × passthrough_hp on create/write/close",
            |line| {
                let is = matches!(line.line.work, Work::Names(NameWork::Create));
                is.then(|| ratio(line.server(ours)?, passthrough_hp(line)?, 3.0))?
            },
        ),
        over(
            results,
            "1.5 × passthrough_hp on stat, rename, unlink",
            |line| {
                let is = matches!(line.line.work, Work::Names(work) if named(work));
                is.then(|| ratio(line.server(ours)?, passthrough_hp(line)?, 1.5))?
            },
        ),
        over(results, "0.75 × the protocol floor on metadata", |line| {
            let is = line.line.is_metadata();
            is.then(|| ratio(line.server(ours)?, line.role(Role::Floor)?, 0.75))?
        }),
        over(
            results,
            "0.95 × native with passthrough, 128 KiB and more",
            |line| {
                let is = matches!(line.line.work, Work::Data { block_bytes, .. } if block_bytes >= 128 << 10);
                is.then(|| ratio(line.server(PASSTHROUGH)?, line.role(Role::Native)?, 0.95))?
            },
        ),
        over(
            results,
            "CPU per operation no higher than the best peer's",
            |line| cpu(line, ours),
        ),
        over(results, "from 1 to 4 threads scales like native", |line| {
            scaling(results, line, ours)
        }),
        memory(results, ours),
    ]
}

fn over(
    results: &Results,
    goal: &str,
    point: impl Fn(&LineResult) -> Option<(Summary, f64)>,
) -> Reached {
    let points = results.lines.iter().filter_map(|line| {
        let (value, limit) = point(line)?;
        Some(Point {
            line: line.line.name.clone(),
            value: value.median,
            range: [value.min, value.max],
            limit,
            met: value.median >= limit,
        })
    });
    Reached {
        goal: goal.to_owned(),
        points: points.collect(),
    }
}

fn ratio(ours: &ServerResult, theirs: &ServerResult, limit: f64) -> Option<(Summary, f64)> {
    Some((ours.ratio(theirs)?, limit))
}

fn passthrough_hp(line: &LineResult) -> Option<&ServerResult> {
    let ways = line.of.iter();
    ways.filter(|result| result.server.starts_with(PASSTHROUGH_HP))
        .filter_map(|result| Some((result, result.rate()?.median)))
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(result, _)| result)
}

/// Theirs by ours, so that more is better here too. Where neither used any time that
/// the clock shows, they are equal.
fn cpu(line: &LineResult, ours: &str) -> Option<(Summary, f64)> {
    let ours = line.server(ours)?.cpu_per_op()?;
    let theirs = line.least_peer_cpu()?;
    let ratio = if ours == 0.0 { 1.0 } else { theirs / ours };
    Some((Summary::of(&[ratio])?, 1.0))
}

/// How much four threads do for us by how much they do for native.
fn scaling(results: &Results, line: &LineResult, ours: &str) -> Option<(Summary, f64)> {
    let alone = results.line(&format!("{}-t1", line.line.family()))?;
    if line.line.threads == 1 {
        return None;
    }
    let ours = gain(alone.server(ours)?, line.server(ours)?);
    let native = gain(alone.role(Role::Native)?, line.role(Role::Native)?);
    let by_round = ours.iter().filter_map(|(round, ours)| {
        let (_, native) = native.iter().find(|(other, _)| other == round)?;
        Some(ours / native)
    });
    Some((Summary::of(&by_round.collect::<Vec<_>>())?, 1.0))
}

fn gain(one: &ServerResult, many: &ServerResult) -> Vec<(u32, f64)> {
    let pairs = many.samples.iter().filter_map(|many| {
        let one = one.samples.iter().find(|one| one.round == many.round)?;
        Some((many.round, many.rate / one.rate))
    });
    pairs.collect()
}

fn memory(results: &Results, ours: &str) -> Reached {
    let walks = results.walks.iter().filter(|walk| walk.server == ours);
    let points = walks.map(|walk| {
        let mib = walk.rss_kib[1] as f64 / 1024.0;
        Point {
            line: format!("walk of {} names", walk.names),
            value: mib,
            range: [mib, mib],
            limit: (WALK_KIB >> 10) as f64,
            met: walk.rss_kib[1] <= WALK_KIB,
        }
    });
    Reached {
        goal: "at most 128 MiB after walking a million files".to_owned(),
        points: points.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::results::{Walk, testing::*},
        *,
    };

    fn find<'a>(all: &'a [Reached], text: &str) -> &'a Reached {
        all.iter()
            .find(|reached| reached.goal.contains(text))
            .expect("such a goal")
    }

    fn four(name: &str, rates: [f64; 4]) -> LineResult {
        let [native, ours, hp, bindfs] = rates;
        line(
            name,
            vec![
                result("native", Role::Native, &[native]),
                result("plugpull-fs cached", Role::Ours, &[ours]),
                result("passthrough_hp", Role::Peer, &[hp]),
                result("bindfs", Role::Peer, &[bindfs]),
            ],
        )
    }

    #[test]
    fn ratios_decide() {
        let results = results(vec![
            four("create-t1", [1000.0, 300.0, 100.0, 400.0]),
            four("stat-t1", [1000.0, 149.0, 100.0, 10.0]),
        ]);
        let all = reached(&results, DEFAULT[1]);
        let met = |text| -> Vec<(f64, bool)> {
            let points = &find(&all, text).points;
            points.iter().map(|p| (p.value, p.met)).collect()
        };
        assert_eq!(met("best peer on"), [(0.75, false), (1.49, true)]);
        assert_eq!(met("3 × passthrough_hp"), [(3.0, true)]);
        assert_eq!(met("1.5 × passthrough_hp"), [(1.49, false)]);
        assert_eq!(met("protocol floor"), []);
        assert_eq!(met("CPU"), [(1.0, true), (1.0, true)]);
        assert_eq!(find(&all, "protocol floor").met(), 0);
    }

    #[test]
    fn scaling_is_held_against_natives() {
        let results = results(vec![
            four("stat-t1", [100.0, 10.0, 10.0, 10.0]),
            four("stat-t4", [200.0, 15.0, 10.0, 10.0]),
        ]);
        let all = reached(&results, DEFAULT[1]);
        let scaling = &find(&all, "scales").points;
        assert_eq!(scaling.len(), 1);
        assert_eq!((scaling[0].value, scaling[0].met), (0.75, false));
    }

    #[test]
    fn processor_time_of_none_is_no_more_than_that_of_none() {
        let mut stat = four("stat-t1", [1.0, 1.0, 1.0, 1.0]);
        let time = |line: &mut LineResult, n: usize, s| line.of[n].samples[0].server_cpu_s = s;
        time(&mut stat, 2, 0.0);
        assert_eq!(cpu(&stat, "plugpull-fs cached").unwrap().0.median, 0.0);
        time(&mut stat, 1, 0.0);
        assert_eq!(cpu(&stat, "plugpull-fs cached").unwrap().0.median, 1.0);
        time(&mut stat, 2, 0.01);
        time(&mut stat, 1, 0.02);
        assert_eq!(cpu(&stat, "plugpull-fs cached").unwrap().0.median, 0.5);
    }

    #[test]
    fn a_round_that_disagrees_is_noise() {
        let mut results = results(vec![line(
            "stat-t1",
            vec![
                result("plugpull-fs cached", Role::Ours, &[90.0, 110.0, 120.0]),
                result("bindfs", Role::Peer, &[100.0, 100.0, 100.0]),
            ],
        )]);
        let point = reached(&results, DEFAULT[1])[0].points[0].clone();
        assert!(point.met && point.is_noisy(), "{point:?}");
        results.lines[0].of[0].samples[0].rate = 100.0;
        let point = reached(&results, DEFAULT[1])[0].points[0].clone();
        assert!(point.met && !point.is_noisy(), "{point:?}");
    }

    #[test]
    fn memory_has_an_upper_limit() {
        let mut results = results(vec![four("stat-t1", [1.0; 4])]);
        for (kib, met) in [(WALK_KIB, true), (WALK_KIB + 1, false)] {
            results.walks = vec![Walk {
                server: "plugpull-fs cached".into(),
                role: Role::Ours,
                names: 1000,
                seconds: 1.0,
                rss_kib: [1, kib],
                descriptors: 9,
            }];
            let all = reached(&results, DEFAULT[1]);
            assert_eq!(find(&all, "128 MiB").points[0].met, met);
        }
    }

    #[test]
    fn auto_is_judged_once_it_is_there() {
        let with = |name| line("stat-t1", vec![result(name, Role::Ours, &[1.0])]);
        let judged = |names: &[&'static str]| {
            let all = results(names.iter().map(|name| with(name)).collect());
            let judged = judge(&all).into_iter().map(|judged| judged.server);
            judged.collect::<Vec<_>>()
        };
        assert!(judged(&["plugpull-fs direct"]).is_empty());
        let both = judged(&["plugpull-fs cached", "plugpull-fs auto"]);
        assert_eq!(both, ["plugpull-fs auto"]);
        let both = judged(&["plugpull-fs auto", IO_URING]);
        assert_eq!(both, ["plugpull-fs auto", IO_URING]);
    }
}
