//! PostgreSQL states, beside what start, recovery and stop alone take.

use std::num::NonZeroU32;

use anyhow::{Context, Result};

use super::{Stage, States, Written, ours};
use crate::{
    bench::figures::{Figure, Group, Unit},
    runner::Outcome,
    scenario::{Case, STATES_PER_CUT},
};

/// The issue's: of a state's time, start, recovery and stop alone.
const FLOOR_SHARE: f64 = 70.0;
/// The issue's, in states a second.
const PER_SECOND: f64 = 1.0;
/// What no check of a PostgreSQL state can leave out, as the runner names it.
const FLOOR: [&str; 4] = [
    "check: mount",
    "postgres: start",
    "postgres: stop",
    "check: unmount",
];

/// The suite's postgres-power-cut on ext4, of another size.
pub(super) fn scenario(order: &States, states: NonZeroU32) -> Written {
    let image = &order.image;
    let cuts = states.get().div_ceil(STATES_PER_CUT);
    let states = cuts * STATES_PER_CUT;
    Written {
        name: String::from("states-postgres"),
        text: format!(
            "about = \"PostgreSQL states a second\"\n\
             [matrix]\nimage = [\"{image}\"]\nlower = [\"ext4\"]\nmount = [\"native\"]\n\
             [disk]\nsize = \"1 GiB\"\nbus = \"virtio\"\ncache = \"volatile\"\n\
             [workload]\nbuiltin = \"postgres-ledger\"\nconnections = 4\n\
             [power-cut]\ncuts = {cuts}\nstates = {states}\n"
        ),
    }
}

/// What was measured in one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Database {
    /// Of one guest.
    per_second: f64,
    states: u64,
    /// Seconds of a state.
    state: f64,
    /// Of that, what cannot be left out.
    floor: f64,
}

impl std::fmt::Display for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            per_second, states, ..
        } = self;
        let share = self.share();
        write!(
            f,
            "{states} states, {per_second:.2} a second; start, recovery and stop are {share:.0} %"
        )
    }
}

impl Database {
    /// Explore once.
    pub(super) fn measure(stage: Stage<'_>, case: &Case, round: u32) -> Result<Self> {
        let (outcome, _dir) = ours::run(stage, case, round)?;
        Self::of(&outcome)
    }

    fn of(outcome: &Outcome) -> Result<Self> {
        let explored = ours::Explored::from(outcome.looked.clone());
        let mut floor = 0.0;
        for phase in FLOOR {
            let seconds = outcome.seconds.get(phase);
            floor += seconds.with_context(|| format!("nothing was spent on {phase:?}"))?;
        }
        let states = explored.states();
        Ok(Self {
            per_second: explored.states_per_second(),
            states,
            state: explored.seconds() / states as f64,
            floor: floor / states as f64,
        })
    }

    /// The floor in percent of all.
    fn share(&self) -> f64 {
        100.0 * self.floor / self.state
    }
}

/// Its figures.
pub(super) fn group(samples: &[Database]) -> Group {
    let each = |what: fn(&Database) -> f64| samples.iter().map(what).collect::<Vec<_>>();
    let figures = [
        Figure::sampled("ours, one guest", Unit::PerSecond, &each(|s| s.per_second))
            .map(|figure| figure.at_least(PER_SECOND)),
        Figure::sampled("  states", Unit::Count, &each(|s| s.states as f64)),
        Figure::sampled("  time of a state", Unit::Seconds, &each(|s| s.state)),
        Figure::sampled(
            "start-recover-stop floor",
            Unit::Seconds,
            &each(|s| s.floor),
        ),
        Figure::sampled(
            "  of the time of a state",
            Unit::Percent,
            &each(Database::share),
        )
        .map(|figure| figure.at_least(FLOOR_SHARE)),
    ];
    Group {
        title: String::from("PostgreSQL on ext4, 1 GiB"),
        figures: figures.into_iter().flatten().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::Looked;

    #[test]
    fn the_floor_is_what_no_check_can_leave_out() {
        let seconds = [
            ("check", 12.0),
            ("check: mount", 0.5),
            ("postgres: start", 4.0),
            ("postgres: read", 2.0),
            ("postgres: stop", 2.0),
            ("check: unmount", 0.5),
        ];
        let mut outcome = Outcome {
            seconds: seconds.map(|(name, s)| (name.to_owned(), s)).into(),
            looked: vec![Looked {
                states: 5,
                judged: 6,
                seconds: 10.0,
            }],
            ..Outcome::default()
        };
        let of = Database::of(&outcome).expect("all phases are there");
        let expected = Database {
            per_second: 0.5,
            states: 5,
            state: 2.0,
            floor: 1.4,
        };
        assert_eq!(of, expected);
        let goals: Vec<_> = group(&[of])
            .figures
            .iter()
            .filter_map(|figure| figure.goal.map(|goal| goal.met))
            .collect();
        assert_eq!(goals, [false, true]);
        // A phase that has another name now is no floor of nothing.
        outcome.seconds.remove("postgres: stop");
        assert!(Database::of(&outcome).is_err());
    }
}
