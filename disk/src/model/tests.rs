//! The model against a second one that follows the rules' words, entry by entry, however slowly.

use proptest::prelude::*;

use crate::cuts::CutCandidate;
use crate::log::{Entry, Recording, Submit};
use crate::testing::{history, honesty, record};
use crate::units::{CutPoint, Honesty, RequestId, Seq};

/// When and how a request was answered, looking at nothing beyond the cut.
fn answer(recording: &Recording, id: RequestId, cut: CutPoint) -> Option<(Seq, u32)> {
    recording.entries().iter().find_map(|entry| match entry {
        Entry::Complete(complete) if complete.id == id && complete.seq <= cut.0 => {
            Some((complete.seq, complete.errno))
        }
        _ => None,
    })
}

fn submissions(recording: &Recording, cut: CutPoint) -> impl Iterator<Item = &Submit> {
    recording
        .entries()
        .iter()
        .filter_map(move |entry| match entry {
            Entry::Submit(submit) if submit.seq <= cut.0 => Some(submit),
            _ => None,
        })
}

fn is_durable(recording: &Recording, write: &Submit, cut: CutPoint) -> bool {
    let Some((written, 0)) = answer(recording, write.id, cut) else {
        return false;
    };
    let is_flushed = submissions(recording, cut)
        .filter(|flush| !flush.is_write() && flush.seq > written)
        .any(|flush| matches!(answer(recording, flush.id, cut), Some((_, 0))));
    recording.honesty() == Honesty::None || write.fua || is_flushed
}

fn ids<'a>(writes: impl Iterator<Item = &'a Submit>) -> Vec<RequestId> {
    writes.map(|write| write.id).collect()
}

fn check_cut(recording: &Recording, cut: CutPoint) -> Result<(), TestCaseError> {
    let state = recording.at(cut).expect("a cut within the recording");
    let writes = || submissions(recording, cut).filter(|submit| submit.is_write());
    let answered = |id| answer(recording, id, cut).map(|(_, errno)| errno == 0);
    prop_assert_eq!(
        &state.in_flight,
        &ids(writes().filter(|write| answered(write.id).is_none()))
    );
    prop_assert_eq!(
        &state.failed,
        &ids(writes().filter(|write| answered(write.id) == Some(false)))
    );
    let flushes = submissions(recording, cut).filter(|submit| !submit.is_write());
    prop_assert_eq!(
        state.epoch.0,
        flushes
            .filter(|flush| answered(flush.id) == Some(true))
            .count() as u64
    );
    if recording.honesty() == Honesty::LiesOnFlush {
        return check_prefix(recording, &state);
    }
    prop_assert_eq!(
        &state.durable,
        &ids(writes().filter(|write| is_durable(recording, write, cut)))
    );
    let volatile = writes()
        .filter(|write| answered(write.id) == Some(true) && !is_durable(recording, write, cut));
    prop_assert_eq!(&state.completed, &ids(volatile));
    Ok(())
}

/// What a lying disk keeps is a prefix of the completed writes, of 30 % to 70 %.
fn check_prefix(recording: &Recording, state: &super::CutState) -> Result<(), TestCaseError> {
    let written = |id: &RequestId| answer(recording, *id, state.cut).map(|(seq, _)| seq);
    let last_kept = state.durable.iter().filter_map(written).max();
    let first_lost = state.completed.iter().filter_map(written).min();
    if let (Some(kept), Some(lost)) = (last_kept, first_lost) {
        prop_assert!(kept < lost, "{kept} is kept and {lost} is lost");
    }
    let (kept, all) = (
        state.durable.len(),
        state.durable.len() + state.completed.len(),
    );
    prop_assert!(
        kept * 10 <= all * 7 && (kept + 1) * 10 > all * 3,
        "{kept} of {all}"
    );
    Ok(())
}

/// A candidate tells what is at stake there, and nothing is at stake only elsewhere.
fn check_candidates(recording: &Recording) -> Result<(), TestCaseError> {
    let candidates = recording.cut_candidates();
    prop_assert!(candidates.is_sorted_by(|one, next| one.cut < next.cut));
    let at = |cut: CutPoint| recording.at(cut).expect("a cut within the recording");
    for candidate in &candidates {
        let state = at(candidate.cut);
        prop_assert_eq!(candidate.losable_completed, state.completed.len() as u64);
        prop_assert_eq!(candidate.in_flight, state.in_flight.len() as u64);
    }
    if recording.honesty() == Honesty::LiesOnFlush || candidates.is_empty() {
        return Ok(());
    }
    for entry in recording.entries() {
        let here = at(CutPoint(entry.seq()));
        let covers = |candidate: &CutCandidate| {
            let there = at(candidate.cut);
            let pending = there.pending();
            there.durable == here.durable && here.pending().iter().all(|id| pending.contains(id))
        };
        let later = || {
            candidates
                .iter()
                .filter(|candidate| candidate.cut >= here.cut)
        };
        prop_assert!(later().any(covers), "nothing covers a cut at {}", here.cut);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_model_says_what_the_rules_say(honesty in honesty(), history in history()) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let recording = record(&dir.path().join("log"), honesty, &history);
        for cut in 0..=recording.last_seq().0 {
            check_cut(&recording, CutPoint(Seq(cut)))?;
        }
        prop_assert!(recording.at(CutPoint(Seq(recording.last_seq().0 + 1))).is_err());
        check_candidates(&recording)?;
    }
}
