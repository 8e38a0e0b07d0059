//! Crash states against a disk that is a plain array of bytes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::crash::{CrashState, Cutter, Keep, PowerCut};
use crate::log::{Operation, Recording};
use crate::survivors::Survivors;
use crate::testing::{DISK_SECTORS, history, honesty, record};
use crate::units::{ByteCount, CutPoint, RequestId, SECTOR_BYTES, Seed, Seq};
use crate::view::View;

/// The base holds this, so that zeros are told from what was never written.
const BASE_BYTE: u8 = 0xEE;

/// The durable and the kept writes, in order of submission, on the base.
fn plain_disk(recording: &Recording, durable: &[RequestId], kept: &[RequestId]) -> Vec<u8> {
    let mut disk = vec![BASE_BYTE; (DISK_SECTORS * SECTOR_BYTES) as usize];
    let present: BTreeSet<RequestId> = durable.iter().chain(kept).copied().collect();
    for id in present {
        let submit = recording.submit(id).expect("a recorded request");
        let value = match submit.operation {
            Operation::Write => id.0 as u8 + 1,
            _ => 0,
        };
        let start = submit.at.byte_offset() as usize;
        disk[start..start + submit.length.0 as usize].fill(value);
    }
    disk
}

fn content(view: &View) -> Vec<u8> {
    let mut bytes = vec![0; view.size().0 as usize];
    view.read_at(0, &mut bytes).expect("the whole disk");
    bytes
}

fn choices(cut: &PowerCut<'_>) -> Vec<Keep> {
    let pending = cut.state().pending();
    let odd = Survivors::whole(pending.iter().step_by(2).copied());
    let mut choices = vec![Keep::DurableOnly, Keep::Everything, Keep::Exactly(odd)];
    choices.extend(pending.first().map(|id| Keep::AllBut(*id, None)));
    choices.extend((0..4).map(|seed| Keep::Subset(Seed(seed))));
    choices
}

fn check_state(
    recording: &Recording,
    cut: &PowerCut<'_>,
    keep: &Keep,
    state: &CrashState,
) -> Result<(), TestCaseError> {
    let pending = cut.state().pending();
    let mut all = [&state.kept[..], &state.dropped[..]].concat();
    all.sort_unstable();
    prop_assert_eq!(&all, &pending);
    match keep {
        Keep::DurableOnly => prop_assert!(state.kept.is_empty()),
        Keep::Everything => prop_assert!(state.dropped.is_empty()),
        Keep::Subset(_) if pending.len() > 1 => {
            prop_assert!(!state.kept.is_empty() && !state.dropped.is_empty());
        }
        Keep::Subset(_) => {}
        Keep::AllBut(lost, _) => prop_assert_eq!(&state.dropped, &vec![*lost]),
        Keep::Exactly(chosen) => prop_assert_eq!(&state.kept, &chosen.ids()),
    }
    let lost = state
        .dropped
        .iter()
        .filter(|id| cut.state().completed.contains(id));
    prop_assert!(state.dropped_completed.iter().eq(lost));
    let expected = plain_disk(recording, &cut.state().durable, &state.kept);
    prop_assert_eq!(content(&state.view), expected);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn a_crash_state_holds_the_durable_and_the_kept(honesty in honesty(), history in history()) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("base");
        std::fs::write(&image, vec![BASE_BYTE; (DISK_SECTORS * SECTOR_BYTES) as usize])
            .expect("a base image");
        let base = View::from_image(&image).expect("a base");
        let recording = record(&dir.path().join("log"), honesty, &history);
        let mut seen = Vec::new();
        for at in 0..=recording.last_seq().0 {
            let cut = PowerCut::new(&base, &recording, CutPoint(Seq(at))).expect("a cut");
            for keep in choices(&cut) {
                let state = cut.crash_state(&keep).expect("a state");
                check_state(&recording, &cut, &keep, &state)?;
                let again = super::crash_state(&base, &recording, state.cut, &keep).expect("again");
                prop_assert_eq!(&again.id, &state.id);
                seen.push((content(&state.view), state.view.digest().expect("a digest")));
            }
        }
        for (one, one_digest) in seen.iter().step_by(3) {
            for (other, other_digest) in seen.iter().rev().step_by(5) {
                prop_assert_eq!(one == other, one_digest == other_digest);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn one_cutter_cuts_anywhere(
        honesty in honesty(),
        history in history(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 1..12),
    ) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let base = View::zeros(ByteCount(DISK_SECTORS * SECTOR_BYTES)).expect("a base");
        let recording = record(&dir.path().join("log"), honesty, &history);
        let mut cutter = Cutter::new(&base, &recording).expect("a cutter");
        for cut in cuts {
            let cut = CutPoint(Seq(cut.index(recording.last_seq().0 as usize + 1) as u64));
            let one = cutter.at(cut).expect("a cut");
            let fresh = PowerCut::new(&base, &recording, cut).expect("a cut");
            prop_assert_eq!(one.state(), fresh.state());
            for keep in choices(&fresh) {
                let [one, fresh] = [&one, &fresh].map(|cut| cut.crash_state(&keep).expect("a state"));
                prop_assert_eq!(content(&one.view), content(&fresh.view));
            }
        }
    }
}

#[test]
fn only_pending_writes_can_be_chosen() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let recording = record(&dir.path().join("log"), Default::default(), &[]);
    let base = View::zeros(ByteCount(DISK_SECTORS * SECTOR_BYTES)).expect("a base");
    let cut = PowerCut::new(&base, &recording, CutPoint(Seq(0))).expect("a cut");
    let stranger = Keep::Exactly(Survivors::whole([RequestId(9)]));
    let error = cut
        .crash_state(&stranger)
        .err()
        .expect("an error")
        .to_string();
    assert!(error.contains("request 9"), "{error}");
    let small = View::zeros(ByteCount(512)).expect("a base");
    assert!(PowerCut::new(&small, &recording, CutPoint(Seq(0))).is_err());
}
