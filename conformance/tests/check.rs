//! The named checks pass between two plain directories, save those that assert a limit
//! of the protocol, which a plain directory has not: they are the control.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use plugpull_conformance::check::{Options, all, run};

#[test]
fn two_plain_directories_pass_but_for_the_protocols_limits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (mount, plain) = (dir.path().join("mount"), dir.path().join("plain"));
    fs::create_dir(&mount).unwrap();
    fs::create_dir(&plain).unwrap();
    let options = Options {
        mount: Some(mount),
        plain: Some(plain),
        list: false,
        fuse: None,
        except: Vec::new(),
        names: Vec::new(),
    };
    let verdicts = run(&options).expect("the directories are there");
    assert_eq!(verdicts.len(), all().len());
    let failed: Vec<_> = verdicts
        .iter()
        .filter_map(|verdict| Some((verdict.name, verdict.failure.as_ref()?)))
        .collect();
    for (name, failure) in &failed {
        assert!(
            failure.contains("a known limit is gone"),
            "{name}: {failure}"
        );
    }
    let names: Vec<_> = failed.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["fallocate-modes"]);
}

#[test]
fn a_directory_on_another_filesystem_is_told_apart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // A tmpfs has other limits and other inode flags than any disk's filesystem.
    let wrong = "/dev/shm".into();
    let options = Options {
        mount: Some(wrong),
        plain: Some(dir.path().to_owned()),
        list: false,
        fuse: None,
        except: Vec::new(),
        names: vec!["times-after-2106".into(), "inode-flags".into()],
    };
    let verdicts = run(&options).expect("the directories are there");
    let failed = verdicts.iter().filter(|verdict| verdict.failure.is_some());
    assert!(failed.count() >= 1, "{verdicts:?}");
}
