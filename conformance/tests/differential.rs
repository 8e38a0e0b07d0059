//! The oracle itself: two plain directories are equal, and every planted fault is found.

use std::fs;
use std::path::Path;

use clap::ValueEnum;
use plugpull_conformance::differential::{Options, Report, run};
use plugpull_conformance::plant::Plant;

fn compare(dir: &Path, plant: Option<Plant>, shrink_seconds: u32, cases: u64) -> Report {
    assert!(
        rustix::process::geteuid().is_root(),
        "sequences change users: run the tests as root"
    );
    let (mount, plain) = (dir.join("mount"), dir.join("plain"));
    for side in [&mount, &plain] {
        fs::create_dir_all(side).unwrap();
    }
    let options = Options {
        mount,
        plain,
        source: None,
        ops: 60,
        cases,
        seed: Some(1),
        seconds: None,
        shrink_seconds,
        plant,
        fuse: None,
        without: Vec::new(),
    };
    run(&options).expect("the directories are there")
}

fn sandbox() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Other users work in it too.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[test]
fn two_plain_directories_are_equal() {
    let dir = sandbox();
    let report = compare(dir.path(), None, 20, 300);
    assert_eq!(report.failure, None);
    assert!(report.calls > 10_000, "{} calls", report.calls);
}

#[test]
fn every_planted_fault_is_found() {
    let dir = sandbox();
    for plant in Plant::value_variants() {
        let report = compare(dir.path(), Some(*plant), 0, 1000);
        assert!(report.failure.is_some(), "{plant:?} was not found");
        println!("{plant:?} was found in sequence {}", report.cases);
    }
}

#[test]
fn a_failure_shrinks_to_the_fault() {
    let dir = sandbox();
    let report = compare(dir.path(), Some(Plant::TruncateOffByOne), 20, 1000);
    let failure = report.failure.expect("a planted fault");
    let calls = failure
        .lines()
        .filter(|line| line.contains("Truncate {"))
        .count();
    assert!(calls >= 1, "{failure}");
    let shrunk = failure.lines().next().unwrap_or_default();
    let few = (1..=5).any(|count| shrunk.ends_with(&format!("shrunk to {count} calls:")));
    assert!(few, "{failure}");
    assert!(failure.contains("--cases 1 --seed "), "{failure}");
}
