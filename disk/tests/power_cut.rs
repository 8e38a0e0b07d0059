//! Power cuts on a live disk: when they come, what stays silent, and what is left.

mod common;

use std::time::{Duration, Instant};

use common::client::{FLUSH, READ, WRITE};
use common::{Rig, content};
use plugpull_disk::{
    ByteCount, CutPoint, CutReason, CutTrigger, DiskError, Entry, Honesty, Keep, RequestId, Seed,
    Seq, choose_cuts, crash_state,
};

const SIZE: ByteCount = ByteCount::mib(1);
const MOMENT: Duration = Duration::from_secs(10);

fn at_cut(rig: &Rig, keep: &Keep) -> plugpull_disk::CrashState {
    let recording = rig.disk.finish().expect("a recording");
    assert!(recording.is_complete());
    let cut = recording.cut().expect("the power was cut");
    crash_state(&rig.base, &recording, cut, keep).expect("a state")
}

#[test]
fn what_was_flushed_stays_and_what_was_not_goes() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    client.flush();
    client.write(512, &[2; 512]);
    client.write_fua(1024, &[3; 512]);
    client.write(0, &[4; 512]);
    rig.disk.cut_now().expect("a cut");
    assert_eq!(
        content(&rig.disk.view())[..512],
        [4; 512],
        "until then it read back"
    );

    let durable = at_cut(&rig, &Keep::DurableOnly);
    let held = content(&durable.view);
    assert_eq!((held[0], held[512], held[1024]), (1, 0, 3));
    assert_eq!(durable.dropped_completed, [RequestId(2), RequestId(4)]);
    assert_eq!(durable.epoch.0, 1);
    let everything = at_cut(&rig, &Keep::Everything);
    assert_eq!(content(&everything.view), content(&rig.disk.view()));
    assert_ne!(durable.id, everything.id);
    assert!(durable.id.starts_with("e1-"), "{}", durable.id);
}

#[test]
fn a_dead_disk_is_silent_and_records_nothing() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    assert_eq!(rig.disk.wait_cut(Duration::ZERO), Ok(None));
    let cut = rig.disk.cut_now().expect("a cut");
    client.send(99, 0, 0, 0, &[]);
    client.send(READ, 0, 0, 512, &[]);
    client.send(WRITE, 0, 0, 512, &[9; 512]);
    client.send(FLUSH, 0, 0, 0, &[]);
    assert!(client.is_silent());
    assert!(
        rig.connect().is_silent(),
        "nor does it hang up on newcomers"
    );
    assert_eq!(rig.disk.mark("late"), Err(DiskError::Cut(cut)));
    assert_eq!(rig.disk.cut_now(), Err(DiskError::Cut(cut)));
    assert!(
        rig.disk
            .swap(rig.base.clone(), &rig.path("next.log"))
            .is_err()
    );
    let recording = rig.disk.finish().expect("a recording");
    assert_eq!(recording.entries().len(), 3, "submit, complete, cut");
    assert_eq!(recording.cut(), Some(cut));
}

#[test]
fn the_nth_flush_is_never_answered() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    rig.disk.arm(CutTrigger::Flush(2)).expect("armed");
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    client.flush();
    client.write(0, &[2; 512]);
    client.send(FLUSH, 0, 0, 0, &[]);
    let cut = rig.disk.wait_cut(MOMENT).expect("alive").expect("a cut");
    assert!(client.is_silent());
    let recording = rig.disk.finish().expect("a recording");
    let state = recording.at(cut).expect("a state");
    assert_eq!(state.epoch.0, 1);
    assert_eq!(state.completed, [RequestId(2)]);
    assert_eq!(content(&at_cut(&rig, &Keep::DurableOnly).view)[0], 1);
}

#[test]
fn the_nth_request_is_recorded_and_not_answered() {
    let rig = Rig::new(SIZE, Honesty::None);
    rig.disk.arm(CutTrigger::Request(2)).expect("armed");
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    assert_eq!(client.read(0, 512), [1; 512], "a read does not count");
    client.send(WRITE, 0, 512, 512, &[2; 512]);
    rig.disk.wait_cut(MOMENT).expect("alive").expect("a cut");
    assert!(client.is_silent());
    let durable = at_cut(&rig, &Keep::DurableOnly);
    assert_eq!(durable.dropped, [RequestId(1)]);
    assert!(durable.dropped_completed.is_empty());
    let held = content(&durable.view);
    assert_eq!(
        (held[0], held[512]),
        (1, 0),
        "write-through keeps what it answered"
    );
    assert_eq!(content(&at_cut(&rig, &Keep::Everything).view)[512], 2);
}

#[test]
fn a_mark_is_a_cut_point_with_no_request_after_it() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    assert_eq!(rig.disk.mark("begin a"), Ok(Seq(3)));
    rig.disk
        .arm(CutTrigger::Mark(b"ack".to_vec()))
        .expect("armed");
    assert_eq!(rig.disk.mark("begin ack"), Ok(Seq(4)));
    assert_eq!(
        rig.disk.mark("ack a"),
        Ok(Seq(5)),
        "the mark itself is recorded"
    );
    assert_eq!(
        rig.disk.wait_cut(Duration::ZERO),
        Ok(Some(CutPoint(Seq(6))))
    );
    assert!(rig.disk.mark("ack b").is_err());
    let recording = rig.disk.finish().expect("a recording");
    let texts: Vec<_> = recording.marks().map(|mark| mark.text.as_slice()).collect();
    assert_eq!(texts, [&b"begin a"[..], b"begin ack", b"ack a"]);
    let reasons: Vec<_> = recording
        .cut_candidates()
        .iter()
        .map(|candidate| {
            (
                candidate.cut.0.0,
                candidate.reason,
                candidate.losable_completed,
            )
        })
        .collect();
    assert_eq!(
        reasons,
        [
            (2, CutReason::AfterCompletion, 1),
            (3, CutReason::AtMark, 1),
            (4, CutReason::AtMark, 1),
            (5, CutReason::AtMark, 1),
            (6, CutReason::AtEnd, 1),
        ]
    );
}

#[test]
fn a_trigger_in_the_past_cuts_at_once() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    rig.disk.mark("one").expect("a mark");
    rig.disk.arm(CutTrigger::Seq(Seq(3))).expect("armed");
    assert_eq!(rig.disk.wait_cut(Duration::ZERO), Ok(None));
    rig.disk.arm(CutTrigger::Seq(Seq(1))).expect("armed");
    assert_eq!(
        rig.disk.wait_cut(Duration::ZERO),
        Ok(Some(CutPoint(Seq(2))))
    );
}

#[test]
fn at_its_time_the_power_goes_with_no_request_to_notice_it() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    let waiting = {
        let disk = rig.disk.clone();
        std::thread::spawn(move || disk.wait_cut(MOMENT))
    };
    let start = Instant::now();
    let after = Duration::from_millis(50);
    rig.disk
        .arm(CutTrigger::Time(start + after))
        .expect("armed");
    let cut = waiting.join().expect("no panic").expect("alive");
    assert_eq!(cut, Some(CutPoint(Seq(3))));
    assert!(start.elapsed() >= after && start.elapsed() < MOMENT);
}

#[test]
fn nothing_that_comes_after_its_time_is_recorded() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    rig.disk.mark("before").expect("alive");
    // Nobody waits: the mark is what notices.
    let soon = Instant::now() + Duration::from_millis(20);
    rig.disk.arm(CutTrigger::Time(soon)).expect("armed");
    while Instant::now() < soon {
        std::thread::yield_now();
    }
    let cut = DiskError::Cut(CutPoint(Seq(2)));
    assert_eq!(rig.disk.mark("too late"), Err(cut));
}

#[test]
fn a_lying_disk_keeps_a_prefix_of_what_it_called_flushed() {
    let rig = Rig::new(SIZE, Honesty::LiesOnFlush);
    let mut client = rig.connect();
    for number in 0..100_u64 {
        client.write_fua(number * 512, &[number as u8 + 1; 512]);
        client.flush();
    }
    rig.disk.cut_now().expect("a cut");
    let durable = at_cut(&rig, &Keep::DurableOnly);
    let held = content(&durable.view);
    let kept = (0..100)
        .take_while(|number| held[number * 512] != 0)
        .count();
    assert!((30..=70).contains(&kept), "{kept} of 100");
    assert!(
        held[kept * 512..].iter().all(|byte| *byte == 0),
        "and nothing after them"
    );
    assert_eq!(durable.dropped_completed.len(), 100 - kept);

    let longer = content(&at_cut(&rig, &Keep::Subset(Seed(5))).view);
    let longer_kept = (0..100)
        .take_while(|number| longer[number * 512] != 0)
        .count();
    assert!(longer_kept > kept && longer_kept < 100, "{longer_kept}");
    assert!(longer[longer_kept * 512..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_medium_is_swapped_under_a_live_connection() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &[1; 512]);
    client.flush();
    client.write(512, &[2; 512]);
    let cut = CutPoint(Seq(rig.disk.mark("now").expect("a mark").0));
    let first = rig
        .disk
        .swap(rig.base.clone(), &rig.path("second.log"))
        .expect("swapped")
        .expect("a recording");
    assert!(first.is_complete());
    assert_eq!(client.read(0, 1024), [0; 1024], "the pristine base");
    assert_eq!(rig.disk.counts().writes, 0);

    let state = crash_state(&rig.base, &first, cut, &Keep::DurableOnly).expect("a state");
    let second = rig
        .disk
        .swap(state.view.clone(), &rig.path("third.log"))
        .expect("swapped")
        .expect("a recording");
    assert!(second.entries().is_empty());
    assert_eq!(client.read(0, 1024), [[1; 512], [0; 512]].concat());
    client.write(512, &[3; 512]);
    rig.disk.cut_now().expect("a cut during recovery");
    let third = rig.disk.finish().expect("a recording");
    assert!(matches!(third.entries()[0], Entry::Submit(submit) if submit.seq == Seq(1)));
    let last = crash_state(
        &state.view,
        &third,
        third.cut().expect("cut"),
        &Keep::Everything,
    );
    let held = content(&last.expect("a state").view);
    assert_eq!((held[0], held[512]), (1, 3));
    assert!(
        rig.disk
            .swap(rig.base.clone(), &rig.path("third.log"))
            .is_err()
    );
}

#[test]
fn marks_from_many_threads_each_have_their_place() {
    let rig = Rig::new(SIZE, Honesty::Volatile);
    let mut client = rig.connect();
    let mut places = std::thread::scope(|scope| {
        let marking: Vec<_> = (0..4)
            .map(|thread| {
                let disk = rig.disk.clone();
                scope.spawn(move || {
                    let mark = |number| disk.mark(format!("{thread}/{number}")).expect("a mark");
                    (0..50).map(mark).collect::<Vec<_>>()
                })
            })
            .collect();
        for number in 0..50 {
            client.write(number * 512, &[1; 512]);
        }
        let joined = marking
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        joined.flatten().collect::<Vec<_>>()
    });
    let recording = rig.disk.finish().expect("a recording");
    places.sort_unstable();
    let recorded: Vec<Seq> = recording.marks().map(|mark| mark.seq).collect();
    assert_eq!(places, recorded);
    assert_eq!(recording.last_seq(), Seq(4 * 50 + 2 * 50));

    let candidates = recording.cut_candidates();
    let chosen = choose_cuts(&candidates, 10, Seed(1));
    assert_eq!(chosen, choose_cuts(&candidates, 10, Seed(1)));
    assert_ne!(chosen, choose_cuts(&candidates, 10, Seed(2)));
    assert!(chosen.is_sorted_by(|one, next| one.cut < next.cut) && chosen.len() == 10);
}
