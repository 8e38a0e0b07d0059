//! Each mutant and what catches it, and that the honest server passes the same.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{CWD, OFlags, RenameFlags, fcntl_getfl, fcntl_setfl, renameat_with};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::harness::{Sandbox, run_ok};
use crate::sync;

/// Whether a server that is started with these further arguments does the right thing.
type Check = fn(&[&str]) -> bool;

/// Checks on a real mount, by the mutants' names.
const CHECKS: [(&str, Check); 10] = [
    ("dsync-dropped", synchronous_writes_are),
    ("fsync-ignored", every_sync_arrives),
    ("fsyncdir-ignored", every_sync_arrives),
    ("enosys-fsync", every_sync_arrives),
    ("fsync-error-swallowed", a_failed_fsync_says_so),
    ("append-flag-kept", append_can_be_switched_off),
    ("rename-flags-ignored", an_exchange_exchanges),
    ("setattr-truncates-wrong-handle", the_right_file_is_cut),
    ("short-write-unreported", a_short_write_says_so),
    ("fd-as-handle", crate::files::concurrent_files_are_their_own),
];

#[test]
fn the_honest_server_passes_every_check() {
    for (name, check) in CHECKS {
        assert!(check(&["--io", "direct"]), "{name}");
    }
}

/// The mutants that no kernel can show, or only at times, and the tests of the library
/// that catch them, which run with it.
#[cfg(feature = "mutants")]
const IN_THE_LIBRARY: [&str; 5] = [
    "close-before-remove",
    "reopen-on-ebadf",
    "stale-generation",
    "forget-miscounted",
    // `fd-as-handle` without its wait, for measurements.
    "fd-as-handle-bare",
];

#[cfg(feature = "mutants")]
#[test]
fn every_mutant_is_caught() {
    use plugpull_fs::mutant::Mutant;
    for mutant in Mutant::ALL.iter().map(|mutant| mutant.name()) {
        let check = CHECKS.iter().find(|(name, _)| *name == mutant);
        assert_eq!(
            check.is_none(),
            IN_THE_LIBRARY.contains(&mutant),
            "{mutant}"
        );
        if let Some((_, check)) = check {
            assert!(
                !check(&["--io", "direct", "--mutant", mutant]),
                "{mutant} passed"
            );
        }
    }
}

fn every_sync_arrives(arguments: &[&str]) -> bool {
    sync::sync_through(arguments) == sync::ALL
}

fn synchronous_writes_are(arguments: &[&str]) -> bool {
    sync::synchronous_writes_through(arguments) == sync::WRITES_THEMSELVES
}

/// fsync on a filesystem whose disk is full below it: the data do not fit, and nobody
/// knows until they are written back.
fn a_failed_fsync_says_so(arguments: &[&str]) -> bool {
    let sandbox = Sandbox::new();
    let (source, store) = (sandbox.source(), sandbox.native());
    mount("thin", &store, "tmpfs", MountFlags::empty(), c"size=8m").unwrap();
    let image = store.join("disk");
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    // Without lazy initialisation nothing but the file's data is written later.
    let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
    let journal = "size=1";
    run_ok(
        "e2fsprogs",
        &[
            "mkfs.ext4",
            "-q",
            "-J",
            journal,
            "-E",
            options,
            &text(&image),
        ],
    );
    run_ok(
        "mount",
        &["mount", "-o", "loop", &text(&image), &text(&source)],
    );
    let server = sandbox.serve(arguments);
    let file = File::create(sandbox.mountpoint().join("f")).unwrap();
    let chunk = vec![7; 1 << 20];
    for number in 0..20 {
        file.write_all_at(&chunk, number << 20).unwrap();
    }
    let failed = file.sync_all().is_err();
    drop(file);
    drop(server);
    unmount(&source, UnmountFlags::DETACH).unwrap();
    unmount(&store, UnmountFlags::DETACH).unwrap();
    failed
}

fn append_can_be_switched_off(arguments: &[&str]) -> bool {
    let sandbox = Sandbox::new();
    let _server = sandbox.serve(arguments);
    let path = sandbox.mountpoint().join("f");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_APPEND)
        .open(&path)
        .unwrap();
    file.write_all_at(b"abc", 0).unwrap();
    fcntl_setfl(&file, fcntl_getfl(&file).unwrap() - OFlags::APPEND).unwrap();
    file.write_all_at(b"X", 0).unwrap();
    fs::read(sandbox.source().join("f")).unwrap() == b"Xbc"
}

fn an_exchange_exchanges(arguments: &[&str]) -> bool {
    let sandbox = Sandbox::new();
    let _server = sandbox.serve(arguments);
    let dir = sandbox.mountpoint();
    let (a, b) = (dir.join("a"), dir.join("b"));
    fs::write(&a, "a").unwrap();
    fs::write(&b, "b").unwrap();
    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
    let read = |name| fs::read(sandbox.source().join(name)).unwrap_or_default();
    (read("a"), read("b")) == (b"b".to_vec(), b"a".to_vec())
}

fn the_right_file_is_cut(arguments: &[&str]) -> bool {
    let sandbox = Sandbox::new();
    let _server = sandbox.serve(arguments);
    let open = |name| {
        let path = sandbox.mountpoint().join(name);
        fs::write(&path, "0123456789").unwrap();
        File::options().write(true).open(path).unwrap()
    };
    let (first, second) = (open("first"), open("second"));
    first.set_len(3).unwrap();
    drop((first, second));
    let length = |name| fs::metadata(sandbox.source().join(name)).unwrap().len();
    (length("first"), length("second")) == (3, 10)
}

/// A write of which a part fits: the count is what is there.
fn a_short_write_says_so(arguments: &[&str]) -> bool {
    let sandbox = Sandbox::new();
    let source = sandbox.source();
    mount("small", &source, "tmpfs", MountFlags::empty(), c"size=256k").unwrap();
    let server = sandbox.serve(arguments);
    let file = File::create(sandbox.mountpoint().join("f")).unwrap();
    let said = file.write_at(&[1; 512 << 10], 0).unwrap();
    drop((file, server));
    let kept = fs::metadata(source.join("f")).unwrap().len();
    unmount(&source, UnmountFlags::DETACH).unwrap();
    said as u64 == kept
}
