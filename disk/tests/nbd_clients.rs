//! Clients that others wrote, against the server: qemu-io, qemu-img and qemu-nbd's own listing.

mod common;

use common::{Rig, content, noise, run};
use plugpull_disk::{ByteCount, Disk, Honesty, View};

#[test]
fn qemu_io_writes_reads_discards_and_flushes() {
    let rig = Rig::new(ByteCount::mib(8), Honesty::Volatile);
    let text = run(
        "qemu-io",
        &[
            "-t",
            "writeback",
            "-f",
            "raw",
            "-d",
            "unmap",
            &rig.uri(),
            "-c",
            "write -P 0xaa 0 64k",
            "-c",
            "write -f -P 0xbb 64k 4k",
            "-c",
            "write -z 4k 4k",
            "-c",
            "discard 8k 4k",
            "-c",
            "flush",
            "-c",
            "write -P 0xcc 512 512",
            "-c",
            "read -P 0xaa 0 512",
            "-c",
            "read -P 0xcc 512 512",
            "-c",
            "read -P 0 4k 8k",
            "-c",
            "read -P 0xbb 64k 4k",
        ],
    );
    assert!(!text.contains("fail"), "{text}");
    let counts = rig.disk.counts();
    assert_eq!((counts.writes, counts.fua), (3, 1), "{counts:?}");
    assert_eq!((counts.zeroes, counts.trims), (1, 1), "{counts:?}");
    assert!(counts.flushes >= 1 && counts.reads >= 4, "{counts:?}");
    let held = content(&rig.disk.view());
    assert_eq!(held[1024..4096], [0xaa; 3072]);
    assert_eq!(held[512..1024], [0xcc; 512]);
    assert_eq!(held[65536..69632], [0xbb; 4096]);
}

#[test]
fn qemu_img_copies_a_whole_image_there_and_back() {
    let rig = Rig::new(ByteCount::mib(16), Honesty::Volatile);
    let image = rig.path("image.raw");
    let mut bytes = vec![0; 16 << 20];
    bytes[1 << 20..5 << 20].copy_from_slice(&noise(1, 4 << 20));
    bytes[(16 << 20) - 512..].fill(0x5a);
    std::fs::write(&image, &bytes).expect("an image");
    let image = image.to_str().expect("a path in UTF-8");
    let uri = rig.uri();
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri],
    );
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", image, &uri],
    );
    assert!(content(&rig.disk.view()) == bytes);

    let exported = rig.path("exported.raw");
    rig.disk.view().export_sparse(&exported).expect("export");
    assert!(std::fs::read(&exported).expect("the export") == bytes);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&exported.metadata().expect("metadata"));
    assert!(
        blocks * 512 < 6 << 20,
        "{blocks} blocks of 512 bytes are allocated"
    );
}

#[test]
fn a_finished_recording_rebuilds_what_the_client_left() {
    let rig = Rig::new(ByteCount::mib(8), Honesty::Volatile);
    run(
        "qemu-io",
        &[
            "-f",
            "raw",
            &rig.uri(),
            "-c",
            "write -P 1 0 1M",
            "-c",
            "write -P 2 512k 1M",
        ],
    );
    let live = rig.disk.view();
    let recording = rig.disk.finish().expect("a recording");
    assert!(recording.is_complete());
    let all = plugpull_disk::crash_state(
        &rig.base,
        &recording,
        plugpull_disk::CutPoint(recording.last_seq()),
        &plugpull_disk::Keep::Everything,
    )
    .expect("a state");
    assert!(content(&all.view) == content(&live));
    assert_eq!(
        all.view.digest().expect("digest"),
        live.digest().expect("digest")
    );
}

#[test]
fn each_kind_of_disk_is_advertised_as_what_it_is() {
    let listing = |rig: &Rig| {
        let socket = rig.path("nbd.sock");
        run(
            "qemu-nbd",
            &["--list", "-k", socket.to_str().expect("UTF-8")],
        )
    };
    let volatile = listing(&Rig::new(ByteCount::mib(8), Honesty::Volatile));
    assert!(volatile.contains("flush fua trim zeroes"), "{volatile}");
    assert!(volatile.contains("min block: 512"), "{volatile}");
    assert!(volatile.contains("opt block: 4096"), "{volatile}");
    let none = listing(&Rig::new(ByteCount::mib(8), Honesty::None));
    assert!(!none.contains("flush") && !none.contains("fua"), "{none}");

    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = Disk::read_only(View::zeros(ByteCount::mib(8)).expect("a size"));
    let socket = dir.path().join("nbd.sock");
    let server = disk.serve(&socket).expect("server");
    let text = run(
        "qemu-nbd",
        &["--list", "-k", socket.to_str().expect("UTF-8")],
    );
    assert!(text.contains("readonly"), "{text}");
    drop(server);
    assert!(!socket.exists(), "a stopped server leaves no socket");
}
