//! Logs that broke off or were damaged: what is whole is read, the rest is never believed.

mod common;

use std::path::{Path, PathBuf};

use common::{Rig, noise};
use plugpull_disk::{ByteCount, Disk, DiskConfig, End, Entry, Honesty, Recording, View};

const HEADER_BYTES: usize = 64;

/// A small log with every kind of entry, and what it says.
fn small_log() -> (tempfile::TempDir, PathBuf, Vec<Entry>) {
    let rig = Rig::new(ByteCount::mib(1), Honesty::Volatile);
    let mut client = rig.connect();
    client.write(0, &noise(1, 512));
    rig.disk.mark("begin").expect("a mark");
    client.flush();
    rig.disk.mark("").expect("an empty mark");
    client.write_fua(1024, &noise(2, 1024));
    rig.disk.cut_now().expect("a cut");
    let recording = rig.disk.finish().expect("a recording");
    let entries = recording.entries().to_vec();
    assert_eq!(entries.len(), 9);
    let Rig { dir, .. } = rig;
    let path = dir.path().join("disk.log");
    (dir, path, entries)
}

fn open_bytes(path: &Path, bytes: &[u8]) -> anyhow::Result<Recording> {
    std::fs::write(path, bytes).expect("a log");
    Recording::open(path)
}

#[test]
fn a_log_cut_at_any_byte_gives_its_whole_entries_and_no_other() {
    let (dir, path, entries) = small_log();
    let whole = std::fs::read(&path).expect("the log");
    let cut_path = dir.path().join("cut.log");
    let mut most = 0;
    for length in 0..whole.len() {
        let Ok(recording) = open_bytes(&cut_path, &whole[..length]) else {
            assert!(length < HEADER_BYTES, "{length} bytes hold a header");
            continue;
        };
        let End::Truncated {
            at_byte, last_seq, ..
        } = recording.end()
        else {
            panic!("{length} of {} bytes pass for a whole log", whole.len());
        };
        let count = recording.entries().len();
        assert_eq!(recording.entries(), &entries[..count]);
        assert_eq!(*last_seq, recording.last_seq());
        assert!(*at_byte <= length as u64 && count >= most);
        most = count;
    }
    assert_eq!(
        most,
        entries.len(),
        "only the trailer was missing at the end"
    );
    assert!(
        open_bytes(&cut_path, &whole)
            .expect("a recording")
            .is_complete()
    );
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let (dir, path, entries) = small_log();
    let whole = std::fs::read(&path).expect("the log");
    let bad_path = dir.path().join("bad.log");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        let Ok(recording) = open_bytes(&bad_path, &bytes) else {
            assert!(at < HEADER_BYTES, "byte {at} is not in the header");
            continue;
        };
        assert!(!recording.is_complete(), "byte {at} went unnoticed");
        assert_eq!(recording.entries(), &entries[..recording.entries().len()]);
    }
    let longer = [&whole[..], b"more"].concat();
    assert!(
        !open_bytes(&bad_path, &longer)
            .expect("a recording")
            .is_complete()
    );
}

#[test]
fn a_file_that_is_no_recording_says_what_it_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let error = |path: &Path| format!("{:#}", Recording::open(path).expect_err("an error"));
    let stranger = dir.path().join("stranger");
    std::fs::write(&stranger, [b'x'; 4096]).expect("a file");
    assert!(error(&stranger).contains("does not begin with PLUGDISK"));
    std::fs::write(&stranger, "").expect("a file");
    assert!(error(&stranger).contains("0 bytes"));
    assert!(error(&dir.path().join("missing")).contains("missing"));

    let store = dir.path().join("store");
    let view = View::zeros(ByteCount::mib(1)).expect("a size");
    let config = DiskConfig {
        record: false,
        ..DiskConfig::default()
    };
    let disk = Disk::create(view.clone(), &store, config).expect("a disk");
    assert!(disk.mark("x").is_err() && disk.cut_now().is_err() && disk.finish().is_err());
    assert!(error(&store).contains("not recorded"));
    assert!(
        Disk::create(view, &store, config).is_err(),
        "a log is never overwritten"
    );
}

#[test]
fn a_disk_that_is_not_recorded_holds_what_was_written() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let view = View::zeros(ByteCount::mib(1)).expect("a size");
    let config = DiskConfig {
        record: false,
        ..DiskConfig::default()
    };
    let disk = Disk::create(view, &dir.path().join("store"), config).expect("a disk");
    let socket = dir.path().join("nbd.sock");
    let _server = disk.serve(&socket).expect("server");
    let mut client = common::client::Client::connect(&socket);
    client.write(4096, &noise(1, 8192));
    client.write(8192, &noise(2, 512));
    client.flush();
    let expected = [&noise(1, 4096)[..], &noise(2, 512), &noise(1, 8192)[4608..]].concat();
    assert_eq!(client.read(4096, 8192), expected);
    let image = dir.path().join("image");
    disk.view().export_sparse(&image).expect("export");
    assert_eq!(
        std::fs::read(&image).expect("the image")[4096..12288],
        expected
    );
    let again = disk
        .swap(disk.view(), &dir.path().join("store2"))
        .expect("swapped");
    assert!(again.is_none());
    assert_eq!(client.read(4096, 8192), expected);
}
