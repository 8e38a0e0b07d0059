//! Where to cut the power in a recorded run: a function of recording and seed.

use plugpull_disk::{CutPoint, Entry, Recording, Seq, explore::Span};
use plugpull_protocol::{
    Promise,
    syncs::Note,
    workload::{MARK_CHECKPOINT_BEGIN, MARK_CHECKPOINT_END, user::MARK_START},
};

/// What cut points are chosen from.
#[derive(Debug, Clone, Default)]
pub(super) struct Timeline {
    /// What the workload said, in order.
    pub(super) promises: Vec<(u64, Promise)>,
    /// Which calls asked for durability meanwhile.
    pub(super) notes: Vec<(u64, Note)>,
    /// When writes without FUA completed: a cut right there takes at least
    /// that write away from a disk that forgets.
    volatile_writes: Vec<u64>,
    /// The last entry.
    end: u64,
}

/// A cut that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) cut: CutPoint,
    pub(super) in_checkpoint: bool,
}

impl Timeline {
    /// Read a recording's marks and completions. Marks that are no promises
    /// are none of ours and are passed over.
    pub(super) fn of(recording: &Recording) -> Self {
        let (mut promises, mut notes) = (Vec::new(), Vec::new());
        for mark in recording.marks() {
            let Ok(promise) = serde_json::from_slice(&mark.text) else {
                continue;
            };
            match Note::of(&promise) {
                Some(note) => notes.push((mark.seq.0, note)),
                None => promises.push((mark.seq.0, promise)),
            }
        }
        let volatile_writes = recording
            .entries()
            .iter()
            .filter_map(|entry| match entry {
                Entry::Complete(complete) if complete.errno == 0 => {
                    let submit = recording.submit(complete.id)?;
                    (submit.is_write() && !submit.fua).then_some(complete.seq.0)
                }
                _ => None,
            })
            .collect();
        Self {
            promises,
            notes,
            volatile_writes,
            end: recording.last_seq().0,
        }
    }

    /// What the workload said, as the ledger takes it.
    pub(super) fn records(&self) -> impl Iterator<Item = (u64, &Promise)> {
        self.promises.iter().map(|(seq, promise)| (*seq, promise))
    }

    /// The cuts at which the ledger is another than at the cut before, and the
    /// first of each of these stretches; in order.
    pub(super) fn ledgers(&self, spans: &[Span]) -> Vec<u64> {
        let mut cuts = Vec::new();
        for span in spans {
            let (first, last) = (span.first.0.0, span.last.0.0);
            let within = |seq: &u64| first < *seq && *seq <= last;
            let changes = self.promises.iter().map(|(seq, _)| *seq).filter(within);
            cuts.push(first);
            cuts.extend(changes);
        }
        cuts.sort_unstable();
        // Two cuts between the same promises have the same ledger.
        cuts.dedup_by_key(|cut| self.promises.partition_point(|(seq, _)| *seq <= *cut));
        cuts
    }

    /// How many writes a cut could have taken away.
    pub(super) fn volatile_writes(&self) -> u64 {
        self.volatile_writes.len() as u64
    }

    /// Where the first acknowledgement is; nothing before it can be lost.
    fn first_ack(&self) -> Option<u64> {
        self.promises
            .iter()
            .find(|(_, promise)| matches!(promise, Promise::Ack { .. }))
            .map(|(seq, _)| *seq)
    }

    /// Where a program of the user's began. One that promises nothing is judged
    /// by its check from there on.
    pub(super) fn start(&self) -> Option<u64> {
        let started =
            |promise: &Promise| matches!(promise, Promise::Mark { text } if text == MARK_START);
        let found = self.promises.iter().find(|(_, promise)| started(promise));
        found.map(|(seq, _)| *seq)
    }

    /// From each checkpoint's request to its return; one that never returned
    /// lasts to the end.
    fn checkpoints(&self) -> Vec<(u64, u64)> {
        let mut windows = Vec::new();
        let mut open = None;
        for (seq, promise) in &self.promises {
            let Promise::Mark { text } = promise else {
                continue;
            };
            if text.starts_with(MARK_CHECKPOINT_BEGIN) {
                open = Some(*seq);
            } else if text.starts_with(MARK_CHECKPOINT_END)
                && let Some(begin) = open.take()
            {
                windows.push((begin, *seq));
            }
        }
        windows.extend(open.map(|begin| (begin, self.end + 1)));
        windows
    }

    /// Choose cuts after the first acknowledgement (after the start of a
    /// program that gives none), about half of them inside
    /// checkpoints, the last one where the plug was really pulled.
    pub(super) fn choose(&self, count: u32, seed: u64) -> Vec<Chosen> {
        let Some(first) = self.first_ack().or(self.start()) else {
            return Vec::new();
        };
        let windows = self.checkpoints();
        let inside = |seq: u64| {
            windows
                .iter()
                .any(|(begin, end)| *begin < seq && seq < *end)
        };
        let under_load = self
            .volatile_writes
            .iter()
            .copied()
            .filter(|seq| *seq > first && *seq < self.end);
        let (mut within, mut without): (Vec<u64>, Vec<u64>) =
            under_load.partition(|seq| inside(*seq));
        let mut random = fastrand::Rng::with_seed(seed);
        random.shuffle(&mut within);
        random.shuffle(&mut without);
        let seeded = (count as usize).saturating_sub(1);
        let mut points: Vec<u64> = within.iter().copied().take(seeded.div_ceil(2)).collect();
        let rest = without
            .iter()
            .chain(within.iter().skip(points.len()))
            .copied();
        let missing = seeded - points.len();
        points.extend(rest.take(missing).collect::<Vec<_>>());
        points.push(self.end);
        points.sort_unstable();
        points.dedup();
        points.into_iter().map(|seq| self.chosen(seq)).collect()
    }

    /// The place where the plug was really pulled.
    pub(super) fn end(&self) -> Chosen {
        self.chosen(self.end)
    }

    fn chosen(&self, seq: u64) -> Chosen {
        Chosen {
            cut: CutPoint(Seq(seq)),
            in_checkpoint: self.is_in_checkpoint(seq),
        }
    }

    /// Whether a checkpoint was under way.
    pub(super) fn is_in_checkpoint(&self, seq: u64) -> bool {
        let mut windows = self.checkpoints().into_iter();
        windows.any(|(begin, end)| begin < seq && seq < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(text: &str) -> Promise {
        Promise::Mark {
            text: text.to_owned(),
        }
    }

    fn timeline() -> Timeline {
        let ack = Promise::Ack {
            conn: 0,
            key: String::from("k"),
        };
        Timeline {
            notes: Vec::new(),
            promises: vec![
                (20, ack),
                (100, mark("checkpoint-begin 1")),
                (150, mark("checkpoint-end 1 recycled 0")),
                (390, mark("checkpoint-begin 2")),
            ],
            volatile_writes: (1..400).collect(),
            end: 400,
        }
    }

    #[test]
    fn cuts_come_after_the_first_acknowledgement_and_half_inside_checkpoints() {
        for seed in 0..50 {
            let chosen = timeline().choose(10, seed);
            assert_eq!(chosen.len(), 10);
            assert!(
                chosen.iter().all(|chosen| chosen.cut.0.0 > 20),
                "{chosen:?}"
            );
            assert!(
                chosen.iter().filter(|chosen| chosen.in_checkpoint).count() >= 5,
                "{chosen:?}"
            );
            assert_eq!(chosen.last().map(|chosen| chosen.cut.0.0), Some(400));
        }
    }

    #[test]
    fn the_seed_decides_and_nothing_else() {
        assert_eq!(timeline().choose(10, 7), timeline().choose(10, 7));
        assert_ne!(timeline().choose(10, 7), timeline().choose(10, 8));
    }

    #[test]
    fn without_an_acknowledgement_only_a_program_is_cut() {
        let silent = Timeline {
            promises: Vec::new(),
            ..timeline()
        };
        assert!(silent.choose(10, 1).is_empty());
        let program = Timeline {
            promises: vec![(20, mark(MARK_START))],
            ..timeline()
        };
        let chosen = program.choose(10, 1);
        assert_eq!(chosen.len(), 10);
        assert!(chosen.iter().all(|c| c.cut.0.0 > 20), "{chosen:?}");
    }

    #[test]
    fn a_state_meets_every_ledger_of_its_cuts_once() {
        let span = |first, last| Span {
            first: CutPoint(Seq(first)),
            last: CutPoint(Seq(last)),
        };
        let ledgers = |spans: &[Span]| timeline().ledgers(spans);
        assert_eq!(ledgers(&[span(0, 19)]), [0]);
        assert_eq!(ledgers(&[span(5, 120)]), [5, 20, 100]);
        assert_eq!(ledgers(&[span(101, 120), span(30, 140)]), [30, 100]);
        assert_eq!(ledgers(&[span(395, 400), span(0, 2)]), [0, 395]);
    }

    #[test]
    fn few_candidates_give_few_cuts() {
        let short = Timeline {
            volatile_writes: vec![30, 31],
            ..timeline()
        };
        assert_eq!(short.choose(10, 1).len(), 3);
    }
}
