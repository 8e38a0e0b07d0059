//! Views: reading through the layers, digests, and sparse images.

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};

use common::{Rig, content, noise};
use plugpull_disk::{ByteCount, Disk, DiskConfig, Honesty, Reads, View};

#[test]
fn equal_content_has_an_equal_digest_however_it_came_about() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("base");
    let bytes = noise(9, 1 << 20);
    std::fs::write(&image, &bytes).expect("a base image");
    let base = View::from_image(&image).expect("a base");
    let log = dir.path().join("log");
    let disk = Disk::create(base.clone(), &log, DiskConfig::default()).expect("a disk");
    let socket = dir.path().join("nbd.sock");
    let _server = disk.serve(&socket).expect("server");
    let mut client = common::client::Client::connect(&socket);
    let pristine = base.digest().expect("a digest");

    client.write(65536 - 512, &[1; 1024]);
    let changed = disk.view();
    assert_ne!(changed.digest().expect("a digest"), pristine);
    client.write(65536 - 512, &bytes[65536 - 512..65536 + 512]);
    assert_eq!(
        disk.view().digest().expect("a digest"),
        pristine,
        "as it was"
    );
    client.write(65536, &[1; 512]);
    client.write(65536 - 512, &[1; 512]);
    assert_eq!(
        disk.view().digest().expect("a digest"),
        changed.digest().expect("a digest")
    );
    client.write(65536 - 512, &[2; 512]);
    assert_ne!(
        disk.view().digest().expect("a digest"),
        changed.digest().expect("a digest")
    );
    assert_eq!(content(&base), bytes, "a view never changes");
    assert_eq!(content(&changed)[65536 - 512..65536 + 512], [1; 1024]);
}

#[test]
fn a_large_sparse_disk_costs_only_what_it_holds() {
    let rig = Rig::new(ByteCount(1 << 40), Honesty::Volatile);
    let mut client = rig.connect();
    // Across the border of two groups of the table, and at the very end.
    let border = 64 << 20;
    client.write(border - 4096, &noise(3, 8192));
    client.write((1 << 40) - 512, &[5; 512]);
    assert_eq!(client.read(border - 4096, 8192), noise(3, 8192));
    assert_eq!(client.read(border - 8192, 4096), [0; 4096]);
    assert_eq!(
        client.read((1 << 40) - 1024, 1024),
        [[0; 512], [5; 512]].concat()
    );
    assert!(rig.disk.view().digest().is_ok());
}

#[test]
fn an_export_is_whole_sparse_and_leaves_no_draft() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("base");
    let file = std::fs::File::create(&image).expect("a base image");
    file.set_len(256 << 20).expect("a sparse file");
    file.write_all_at(&noise(4, 10_000), 100 << 20)
        .expect("data");
    let base = View::from_image(&image).expect("a base");
    let out = dir.path().join("out");
    base.export_sparse(&out).expect("export");
    base.export_sparse(&out)
        .expect("an export replaces an older one");
    assert!(std::fs::read(&out).expect("the export") == std::fs::read(&image).expect("the base"));
    let allocated = out.metadata().expect("metadata").blocks() * 512;
    assert!(allocated <= 64 << 10, "{allocated} bytes are allocated");
    assert!(base.export_sparse(&dir.path().join("nowhere/out")).is_err());
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["base", "out"]);
}

#[test]
fn what_cannot_be_a_disk_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let odd = dir.path().join("odd");
    std::fs::write(&odd, [0; 1000]).expect("a file");
    let error = format!("{:#}", View::from_image(&odd).err().expect("an error"));
    assert!(error.contains("odd") && error.contains("1000"), "{error}");
    assert!(View::zeros(ByteCount(0)).is_err());
    assert!(View::zeros(ByteCount(u64::MAX - 511)).is_err());
    assert!(View::from_image(&dir.path().join("missing")).is_err());
    let view = View::zeros(ByteCount(1024)).expect("a size");
    assert!(view.read_at(1000, &mut [0; 25]).is_err());
    assert!(view.read_at(u64::MAX, &mut [0; 2]).is_err());
    view.read_at(1000, &mut [0; 24])
        .expect("any bytes, not only sectors");
}

/// Views of a small disk after each of many writes, and again of another disk that was told the
/// same: nothing of theirs is shared but the bytes.
fn histories() -> (Vec<Rig>, Vec<View>) {
    let size = ByteCount(4 * 65536);
    let (mut rigs, mut views) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let rig = Rig::new(size, Honesty::Volatile);
        let mut client = rig.connect();
        let mut random = fastrand::Rng::with_seed(11);
        views.push(rig.base.clone());
        for _ in 0..40 {
            let sectors = random.u64(1..200);
            let at = random.u64(0..=(size.0 / 512 - sectors)) * 512;
            // Few values, so that much is overwritten with what was there.
            client.write(at, &vec![random.u8(0..2); sectors as usize * 512]);
            views.push(rig.disk.view());
        }
        rigs.push(rig);
    }
    (rigs, views)
}

#[test]
fn views_agree_on_exactly_the_reads_in_which_they_hold_the_same() {
    let (_rigs, views) = histories();
    let contents: Vec<_> = views.iter().map(content).collect();
    let mut random = fastrand::Rng::with_seed(5);
    let mut agreed = [0; 2];
    for _ in 0..20_000 {
        let (one, other) = (random.usize(0..views.len()), random.usize(0..views.len()));
        let mut reads = Reads::default();
        for _ in 0..random.u32(0..4) {
            // Reads of a block device are whole sectors; a reader may be of another mind.
            let first = random.u64(0..4 * 65536);
            reads.add(first..(first + random.u64(0..3000)).min(4 * 65536));
        }
        let same = |range: std::ops::Range<u64>| {
            let range = range.start as usize..range.end as usize;
            contents[one][range.clone()] == contents[other][range]
        };
        let expected = reads.ranges().all(same);
        let found = views[one].agrees_with(&views[other], &reads);
        assert_eq!(found.expect("views"), expected, "{one} {other} {reads:?}");
        agreed[usize::from(expected)] += 1;
    }
    assert!(agreed.iter().all(|times| *times > 1000), "{agreed:?}");
}

#[test]
fn views_that_cannot_be_compared_are_refused() {
    let size = |bytes| View::zeros(ByteCount(bytes)).expect("a size");
    let mut reads = Reads::default();
    assert!(size(512).agrees_with(&size(1024), &reads).is_err());
    reads.add(0..513);
    assert!(size(512).agrees_with(&size(512), &reads).is_err());
}
