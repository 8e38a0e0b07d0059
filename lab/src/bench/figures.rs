//! What a bench measured, as values: samples, costs, rates, goals.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use plugpull_vm::host;
use serde::Serialize;

use super::DATA_DISK;
use crate::testbed::Testbed;

/// Changes whenever the JSON does.
const SCHEMA: u32 = 1;

/// Everything that one call of a bench measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sheet {
    /// Version of this format.
    pub schema: u32,
    /// Which bench: `vm`, `disk`, `states` or `controls`.
    pub bench: &'static str,
    /// Where it ran.
    pub setting: Setting,
    /// What a reader must know of how it was measured.
    pub notes: Vec<String>,
    /// The figures.
    pub groups: Vec<Group>,
}

impl Sheet {
    pub(super) fn new(bench: &'static str, setting: Setting, notes: Vec<String>) -> Self {
        Self {
            schema: SCHEMA,
            bench,
            setting,
            notes,
            groups: Vec::new(),
        }
    }
}

/// Where a bench ran.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// `uname -r` of the host.
    pub kernel: String,
    /// QEMU's version, as it says itself.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Processors this process may use.
    pub cores: usize,
    /// `debug` or `release`: the recording disk runs in this process.
    pub build: &'static str,
    /// Virtual processors of a guest.
    pub guest_cpus: u32,
    /// Memory of a guest in MiB.
    pub guest_memory_mib: u32,
}

impl Setting {
    pub(super) fn of(bed: &Testbed) -> Result<Self> {
        let facts = host::facts(&bed.home().state)?;
        // All guests of a run have the same shape but for their disks.
        let image = bed.setup().images.keys().next();
        let image = image.context("a bench needs at least one image")?;
        let (guest_cpus, guest_memory_mib) = bed.with_plan(image, DATA_DISK, |plan| {
            Ok((plan.shape.cpus, plan.shape.memory_mib))
        })?;
        Ok(Self {
            guest_cpus,
            guest_memory_mib,
            kernel: facts.kernel,
            qemu: bed.setup().qemu.version.clone(),
            accel: bed.setup().accel.accel().to_string(),
            cores: facts.cores,
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
        })
    }
}

/// Figures that belong together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// What they are figures of.
    pub title: String,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// What came of it.
    pub value: Value,
    /// What it should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
}

impl Figure {
    /// A figure of samples; `None` where there are none.
    pub fn sampled(name: impl Into<String>, unit: Unit, samples: &[f64]) -> Option<Self> {
        Some(Self {
            name: name.into(),
            value: Value::Sample {
                unit,
                summary: Summary::of(samples)?,
                samples: samples.to_vec(),
            },
            goal: None,
        })
    }

    /// The same figure, held against a limit on its median.
    #[must_use]
    pub fn at_most(self, limit: f64) -> Self {
        self.held_to(Bound::AtMost(limit))
    }

    /// The same figure, held against what its median should reach.
    #[must_use]
    pub fn at_least(self, limit: f64) -> Self {
        self.held_to(Bound::AtLeast(limit))
    }

    fn held_to(mut self, bound: Bound) -> Self {
        if let Value::Sample { summary, .. } = &self.value {
            let met = match bound {
                Bound::AtMost(limit) => summary.median <= limit,
                Bound::AtLeast(limit) => summary.median >= limit,
            };
            self.goal = Some(Goal { bound, met });
        }
        self
    }
}

/// What came of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Value {
    /// The same thing measured several times.
    Sample {
        /// Of every number here.
        unit: Unit,
        /// What the samples come to.
        summary: Summary,
        /// In the order in which they were taken.
        samples: Vec<f64>,
    },
    /// How often something happened.
    Rate(Rate),
}

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Thousandths of a second.
    Milliseconds,
    /// 10⁶ bytes a second.
    MegabytesPerSecond,
    /// Operations a second.
    PerSecond,
    /// Percent.
    Percent,
    /// Things counted.
    Count,
}

/// Samples in brief.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The middle one; of an even number, the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many.
    pub n: usize,
}

impl Summary {
    /// `None` where there are no samples.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let n = sorted.len();
        let median = f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]);
        Some(Self {
            median,
            min,
            max,
            n,
        })
    }
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goal {
    /// What the median is held against.
    #[serde(flatten)]
    pub bound: Bound,
    /// Whether it is so.
    pub met: bool,
}

/// What a median should not pass, in the figure's unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It should not be above this.
    AtMost(f64),
    /// It should not be below this.
    AtLeast(f64),
}

/// How often something was caught.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rate {
    /// Runs whose story was told to its end; the rate is of these.
    pub runs: u32,
    /// Runs in which an oracle complained.
    pub caught: u32,
    /// Runs in which the machinery failed; they say nothing of the rate.
    pub infra: u32,
    /// Runs in which each oracle complained; one run may count for several.
    pub by: BTreeMap<String, u32>,
    /// Why the machinery failed, run by run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub infra_because: Vec<String>,
}

/// The share of throughput that is lost against a peer, in percent, round by
/// round: what happens on the host during a round happens to both, so the
/// median is taken of these and not of each side.
pub fn costs(ours: &[f64], peer: &[f64]) -> Vec<f64> {
    ours.iter()
        .zip(peer)
        .map(|(ours, peer)| 100.0 * (1.0 - ours / peer))
        .collect()
}

/// Wilson's interval (1927) for a rate, 95 %, in percent: unlike the usual one
/// it is right for few runs and for rates of none and all.
pub fn wilson(hits: u32, runs: u32) -> Option<(f64, f64)> {
    const Z: f64 = 1.959_964;
    if runs == 0 || hits > runs {
        return None;
    }
    let (n, share) = (f64::from(runs), f64::from(hits) / f64::from(runs));
    let middle = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let bound = |x: f64| (100.0 * x / (1.0 + Z * Z / n)).clamp(0.0, 100.0);
    Some((bound(middle - spread), bound(middle + spread)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_does_not_depend_on_order() {
        assert_eq!(Summary::of(&[]), None);
        let odd = Summary::of(&[3.0, 1.0, 20.0]);
        let three = Summary {
            median: 3.0,
            min: 1.0,
            max: 20.0,
            n: 3,
        };
        assert_eq!(odd, Some(three));
        let even = Summary::of(&[4.0, 1.0, 2.0, 100.0]);
        assert_eq!(even.map(|s| (s.median, s.n)), Some((3.0, 4)));
        let one = Summary::of(&[7.5]);
        assert_eq!(one.map(|s| (s.median, s.min, s.max)), Some((7.5, 7.5, 7.5)));
    }

    #[test]
    fn costs_are_taken_round_by_round() {
        // The host was ten times slower in the second round: both medians
        // would come from different rounds and say 0 %.
        let (ours, peer) = ([80.0, 9.0, 90.0], [100.0, 10.0, 80.0]);
        let cost = costs(&ours, &peer);
        let rounded: Vec<_> = cost.iter().map(|c| (c * 10.0).round() / 10.0).collect();
        assert_eq!(rounded, [20.0, 10.0, -12.5]);
        let median = Summary::of(&cost).map(|s| s.median.round());
        assert_eq!(median, Some(10.0));
    }

    #[test]
    fn a_goal_is_held_against_the_median() {
        let figure = |limit| {
            Figure::sampled("x", Unit::Percent, &[10.0, 15.0, 90.0])
                .and_then(|figure| figure.at_most(limit).goal)
                .map(|goal| goal.met)
        };
        assert_eq!(figure(15.0), Some(true));
        assert_eq!(figure(14.9), Some(false));
        let reached = |limit| {
            Figure::sampled("x", Unit::PerSecond, &[10.0, 15.0, 90.0])
                .and_then(|figure| figure.at_least(limit).goal)
        };
        assert_eq!(reached(15.0).map(|goal| goal.met), Some(true));
        assert_eq!(reached(15.1).map(|goal| goal.met), Some(false));
        let json = serde_json::to_value(reached(15.0)).expect("a value");
        assert_eq!(json, serde_json::json!({"at_least": 15.0, "met": true}));
    }

    #[test]
    fn the_interval_of_a_rate_is_wilsons() {
        let rounded = |hits, runs| wilson(hits, runs).map(|(a, b)| (a.round(), b.round()));
        // Values of R's `prop.test(…, correct = FALSE)`.
        assert_eq!(rounded(8, 25), Some((17.0, 52.0)));
        assert_eq!(rounded(10, 10), Some((72.0, 100.0)));
        assert_eq!(rounded(0, 10), Some((0.0, 28.0)));
        assert_eq!(rounded(0, 0), None);
    }
}
