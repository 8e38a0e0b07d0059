//! Round trips, and logs that are damaged.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::crash::{Keep, crash_state};
use crate::log::{Entry, Recording};
use crate::testing::{DISK_SECTORS, history, record};
use crate::units::{ByteCount, CutPoint, Honesty, SECTOR_BYTES};
use crate::view::View;

const SIZE: ByteCount = ByteCount(DISK_SECTORS * SECTOR_BYTES);

fn content(recording: &Recording, cut: CutPoint, keep: &Keep) -> Vec<u8> {
    let base = View::zeros(SIZE).expect("a base");
    let view = crash_state(&base, recording, cut, keep)
        .expect("a state")
        .view;
    let mut bytes = vec![0; SIZE.0 as usize];
    view.read_at(0, &mut bytes).expect("the whole disk");
    bytes
}

/// What was durable when each flush had succeeded, in order.
fn flushed(recording: &Recording) -> Vec<Vec<u8>> {
    let succeeds = |entry: &&Entry| match entry {
        Entry::Complete(complete) if complete.errno == 0 => recording
            .submit(complete.id)
            .is_some_and(|request| !request.is_write()),
        _ => false,
    };
    let flushes = recording.entries().iter().filter(succeeds);
    flushes
        .map(|entry| content(recording, CutPoint(entry.seq()), &Keep::DurableOnly))
        .collect()
}

fn marks(recording: &Recording) -> Vec<Vec<u8>> {
    recording.marks().map(|mark| mark.text.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What was durable at each flush is durable at the same flush of the copy, and what was
    /// completed in the end is there in the end.
    #[test]
    fn what_is_exported_and_imported_is_as_durable(history in history()) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = record(&dir.path().join("first"), Honesty::Volatile, &history);
        let log = dir.path().join("log-writes");
        export(&first, &log).expect("exported");
        let second = import(&log, SIZE, Count::AsWritten, &dir.path().join("second"))
            .expect("imported");
        prop_assert_eq!(flushed(&second), flushed(&first));
        prop_assert_eq!(marks(&second), marks(&first));
        // Trailing data of the last entry is part of the file, and nothing follows it.
        let scanned = import(&log, SIZE, Count::Scanned, &dir.path().join("scanned"))
            .expect("scanned");
        prop_assert_eq!(scanned.entries(), second.entries());
    }
}

/// A log of these entries: sector, sectors, flags, data.
fn write_log(path: &Path, counted: u64, entries: &[(u64, u64, u64, &[u8])]) {
    let mut bytes = vec![0; 512];
    bytes[0..8].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&1_u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&counted.to_le_bytes());
    bytes[24..28].copy_from_slice(&512_u32.to_le_bytes());
    for (at, sectors, flags, data) in entries {
        let mut head = [*at, *sectors, *flags, 0].map(u64::to_le_bytes).concat();
        head.resize(512, 0);
        bytes.extend(head);
        bytes.extend(*data);
    }
    std::fs::write(path, bytes).expect("a log");
}

#[test]
fn a_log_of_a_killed_machine_is_scanned_past_its_count() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let log = dir.path().join("log");
    let entries: [(u64, u64, u64, &[u8]); 4] = [
        (0, 1, METADATA, &[1; 512]),
        (0, 0, FLUSH, &[]),
        (1, 1, 0, &[2; 512]),
        // What the device held before: nothing.
        (0, 0, 0, &[0; 2048]),
    ];
    write_log(&log, 1, &entries);
    let found = |count, name| {
        let recording = import(&log, SIZE, count, &dir.path().join(name)).expect("imported");
        recording.entries().len()
    };
    assert_eq!(found(Count::AsWritten, "counted"), 2);
    assert_eq!(found(Count::Scanned, "scanned"), 6);
}

#[test]
fn damage_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (log, out) = (dir.path().join("log"), dir.path().join("out"));
    let whole: &[u8] = &[1; 512];
    let cases = [
        ("entry 0 of 2, at byte 512", 2, (90, 1, 0, whole)),
        ("are not on a disk of 6144 bytes", 1, (u64::MAX, 2, 0, &[])),
        ("the log ends inside the entry's data", 1, (0, 2, 0, whole)),
        ("entry 1 of 2", 2, (0, 1, 0, whole)),
        ("there is no entry", 1, (0, 1, 1 << 7, whole)),
    ];
    for (expected, counted, entry) in cases {
        write_log(&log, counted, &[entry]);
        let error = import(&log, SIZE, Count::AsWritten, &out).err();
        let error = format!(
            "{:#}",
            error.unwrap_or_else(|| panic!("{expected}: imported"))
        );
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(!out.exists(), "{expected}: left behind");
    }
    std::fs::write(&log, [7; 600]).expect("a file");
    let error = import(&log, SIZE, Count::AsWritten, &out).expect_err("refused");
    assert!(
        error.to_string().contains("is no log of dm-log-writes"),
        "{error}"
    );
}
