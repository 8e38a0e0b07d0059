//! The figures as they stand in the sheet.

use super::{
    Of, goal,
    ours::{Explored, Mode},
    prefixes::{PARTS, Prefixes},
    size_mib,
};
use crate::{
    bench::figures::{Figure, Group, Unit},
    scenario::{Fs, Named},
};

/// Figures of one filesystem: our own and what bounds them.
pub(super) fn ours(fs: Fs, of: &Of) -> Group {
    let mut figures = Vec::new();
    let crash: Vec<f64> = of.bare.iter().map(|bare| bare.crash).collect();
    for (mode, samples) in Mode::ALL.into_iter().zip(&of.explored) {
        let each = |what: fn(&Explored) -> f64| samples.iter().map(what).collect::<Vec<_>>();
        let rate = match mode {
            Mode::Pruned => each(Explored::judged_per_second),
            Mode::Looked | Mode::Fsck => each(Explored::states_per_second),
        };
        let figure = Figure::sampled(mode.label(), Unit::PerSecond, &rate);
        figures.extend(match mode {
            Mode::Looked => figure.map(|figure| figure.at_least(goal(fs))),
            Mode::Fsck | Mode::Pruned => figure,
        });
        if mode == Mode::Pruned {
            continue;
        }
        let guest = each(Explored::states_per_second_of_a_guest);
        figures.extend(Figure::sampled("  of one guest", Unit::PerSecond, &guest));
        if mode == Mode::Looked {
            let share = shares(&guest, &crash);
            figures.extend(Figure::sampled(
                "  of one guest, of the bare limit",
                Unit::Percent,
                &share,
            ));
            figures.extend(counted("  guests", &each(|e| e.guests() as f64)));
            figures.extend(counted("  states", &each(|e| e.states() as f64)));
        }
    }
    let clean: Vec<f64> = of.bare.iter().map(|bare| bare.clean).collect();
    for (name, samples) in [
        ("bare limit, a crash state", &crash),
        ("bare limit, a clean disk", &clean),
    ] {
        figures.extend(Figure::sampled(name, Unit::PerSecond, samples));
    }
    Group {
        title: format!(
            "{}, {} MiB: ours and the bare limit",
            fs.name(),
            size_mib(fs)
        ),
        figures,
    }
}

/// Figures of the peer, and of ours beside it.
pub(super) fn prefixes(fs: Fs, of: &Of) -> Group {
    let each = |what: &dyn Fn(&Prefixes) -> f64| of.prefixes.iter().map(what).collect::<Vec<_>>();
    let mut figures = Vec::new();
    for (mode, name) in [
        (Mode::Looked, "prefixes, no fsck"),
        (Mode::Fsck, "prefixes, with fsck"),
    ] {
        let rate = each(&|prefixes| prefixes.per_second(mode == Mode::Fsck));
        figures.extend(Figure::sampled(name, Unit::PerSecond, &rate));
        let ours = of.explored[mode as usize].iter();
        let ours: Vec<f64> = ours.map(Explored::states_per_second).collect();
        let guest = of.explored[mode as usize].iter();
        let guest: Vec<f64> = guest.map(Explored::states_per_second_of_a_guest).collect();
        for (name, rates) in [
            ("  ours, all guests, of it", ours),
            ("  ours, one guest, of it", guest),
        ] {
            let share = shares(&rates, &rate);
            figures.extend(Figure::sampled(name, Unit::Percent, &share));
        }
    }
    for part in 0..PARTS {
        let name = of.prefixes.first().map(|prefixes| prefixes.parts()[part].0);
        let took = each(&|prefixes| prefixes.parts()[part].1);
        figures.extend(name.and_then(|name| Figure::sampled(name, Unit::Milliseconds, &took)));
    }
    figures.extend(counted("prefixes", &each(&|p| p.count() as f64)));
    figures.extend(counted(
        "  different disks",
        &each(&|p| p.distinct() as f64),
    ));
    figures.extend(counted(
        "told apart, same log",
        &each(&|p| p.told_apart() as f64),
    ));
    Group {
        title: format!(
            "{}, {} MiB: prefixes with dm-log-writes",
            fs.name(),
            size_mib(fs)
        ),
        figures,
    }
}

/// The time of showing a failure again.
pub(super) fn again(seconds: &[f64]) -> Option<Group> {
    let figure = Figure::sampled("capsule to verdict", Unit::Seconds, seconds)?;
    Some(Group {
        title: String::from("a failing state of ext4 again"),
        figures: vec![figure],
    })
}

fn counted(name: &str, samples: &[f64]) -> Option<Figure> {
    Figure::sampled(name, Unit::Count, samples)
}

/// One side in percent of the other, round by round, for the reason that
/// [`super::costs`] gives.
fn shares(of: &[f64], whole: &[f64]) -> Vec<f64> {
    let pairs = of.iter().zip(whole);
    pairs.map(|(of, whole)| 100.0 * of / whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Value, states::bare::Bare};

    #[test]
    fn shares_are_taken_round_by_round() {
        assert_eq!(shares(&[5.0, 1.0], &[10.0, 4.0]), [50.0, 25.0]);
    }

    #[test]
    fn the_goal_is_of_all_guests_without_fsck() {
        let explored = Explored::of(&[(300, 300, 12.0), (300, 300, 12.0)]);
        let of = Of {
            explored: std::array::from_fn(|_| vec![explored.clone()]),
            bare: vec![Bare {
                crash: 50.0,
                clean: 60.0,
            }],
            prefixes: Vec::new(),
        };
        let group = ours(Fs::Ext4, &of);
        let goals: Vec<_> = group.figures.iter().map(|f| f.goal.is_some()).collect();
        assert_eq!(goals.iter().filter(|has| **has).count(), 1);
        assert_eq!(group.figures[0].goal.map(|goal| goal.met), Some(true));
        let Value::Sample { samples, .. } = &group.figures[2].value else {
            panic!("a sample");
        };
        assert_eq!(samples, &[50.0]);
    }
}
