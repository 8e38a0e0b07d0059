//! What was recorded is in the picture once, and the picture stays small.

use std::path::Path;

use plugpull_disk::{ByteCount, Disk, DiskConfig, View};

use super::*;

#[path = "../../../../disk/tests/common/client.rs"]
#[allow(dead_code, reason = "the disk's own client, of which this uses a part")]
mod client;

/// So many writes, a flush after every third, and a promise after every flush.
fn recording(dir: &Path, writes: u64) -> Recording {
    let base = View::zeros(ByteCount::mib(1)).expect("a base");
    let disk = Disk::create(base, &dir.join("log"), DiskConfig::default()).expect("a disk");
    let socket = dir.join("nbd.sock");
    let server = disk.serve(&socket).expect("served");
    let mut client = client::Client::connect(&socket);
    for n in 0..writes {
        client.write(n % 256 * 4096, &[n as u8; 4096]);
        if n % 3 == 2 {
            client.flush();
            let ack = Promise::Ack {
                conn: 0,
                key: n.to_string(),
            };
            let text = serde_json::to_string(&ack).expect("encoded");
            disk.mark(&text).expect("marked");
        }
    }
    drop((client, server));
    disk.finish().expect("closed")
}

fn shown(cut: u64, outcome: Outcome) -> Shown {
    Shown {
        sum: format!("s{cut}"),
        class: "none",
        cut,
        outcome,
        guilty: (outcome == Outcome::Broken).then(|| (format!("e{cut}"), "ledger".into())),
    }
}

fn picture(recording: &Recording, states: &[Shown]) -> Exploration {
    drawn(&Drawing {
        recording,
        timeline: &Timeline::of(recording),
        from: 0,
        states,
        coverage: None,
        unseen: "were left",
    })
}

#[test]
fn everything_that_was_recorded_is_in_the_picture_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let recording = recording(dir.path(), 9);
    let last = recording.last_seq().0;
    let states = [
        shown(0, Outcome::Kept),
        shown(4, Outcome::Broken),
        shown(last, Outcome::Unseen),
    ];
    let of = picture(&recording, &states);
    let total = |what: &str| of.totals.get(what).copied();
    assert_eq!(total("writes"), Some(9));
    assert_eq!(total("bytes"), Some(9 * 4096));
    assert_eq!(total("flushes"), Some(3));
    assert_eq!(total("acknowledged"), Some(3));
    // A cut may come between the flush and its answer.
    assert_eq!(total("pending"), Some(3));
    assert_eq!(of.epochs_total, 4);
    let writes: Vec<_> = of.epochs.iter().map(|epoch| epoch.writes).collect();
    assert_eq!(writes, [3, 3, 3, 0]);
    let planned: Vec<_> = of.epochs.iter().map(|epoch| epoch.planned).collect();
    assert_eq!(planned, [2, 0, 0, 1]);
    assert_eq!(of.counts(), (3, 1, 1));
    assert_eq!(of.broken[0].state, "e4");
    assert_eq!((of.classes[0].drawn, of.classes[0].broken), (3, 1));
    assert_eq!(table(&states).lines().count(), 4);
    assert!(table(&states).ends_with(&format!("s{last}\tnone\t{last}\tunseen\n")));
}

#[test]
fn a_long_recording_makes_no_large_picture() {
    let dir = tempfile::tempdir().expect("a directory");
    let recording = recording(dir.path(), 12_000);
    let states: Vec<_> = (0..30_000)
        .step_by(2)
        .map(|cut| shown(cut, Outcome::Broken))
        .collect();
    let of = picture(&recording, &states);
    assert_eq!(of.counts(), (15_000, 0, 15_000));
    assert_eq!(
        of.epochs.iter().map(|epoch| epoch.writes).sum::<u64>(),
        12_000
    );
    assert_eq!(
        of.epochs.last().map(|epoch| epoch.last),
        Some(of.epochs_total)
    );
    let json = serde_json::to_vec(&of).expect("encoded");
    assert!(json.len() < 64 << 10, "{} bytes", json.len());
}
