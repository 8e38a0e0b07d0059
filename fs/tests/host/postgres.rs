//! initdb on a mount gives what it gives natively. Needs a PostgreSQL on the host
//! (Debian: `postgresql-15` or later), hence behind the feature `host-postgres`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use crate::harness::{Sandbox, run, run_ok};

#[test]
fn initdb_equals_native() {
    for arguments in [&[][..], &["--io", "direct"]] {
        let sandbox = Sandbox::new();
        let native = native_cluster(&sandbox);
        let server = sandbox.serve(arguments);
        let output = initdb(&sandbox.mountpoint());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(files(&sandbox.mountpoint().join("cluster")), native);
        server.unmount();
        assert_eq!(files(&sandbox.source().join("cluster")), native);
    }
}

#[cfg(feature = "mutants")]
#[test]
fn initdb_on_descriptors_as_handles_is_caught() {
    let sandbox = Sandbox::new();
    let native = native_cluster(&sandbox);
    let _server = sandbox.serve(&["--io", "direct", "--mutant", "fd-as-handle"]);
    let output = initdb(&sandbox.mountpoint());
    let cluster = sandbox.source().join("cluster");
    let equal = cluster.exists() && files(&cluster) == native;
    assert!(!(output.status.success() && equal), "the mutant passed");
}

fn native_cluster(sandbox: &Sandbox) -> BTreeMap<PathBuf, u64> {
    let uid = run_ok("postgresql-15", &["id", "-u", "postgres"]);
    let uid = uid.trim().parse().unwrap();
    for dir in [sandbox.native(), sandbox.source()] {
        chown(dir, Some(uid), None).unwrap();
    }
    let output = initdb(&sandbox.native());
    assert!(output.status.success(), "{output:?}");
    let native = files(&sandbox.native().join("cluster"));
    let empty = native.values().filter(|size| **size == 0).count();
    assert!(
        native.len() > 900 && empty > 100,
        "{} files, {empty} empty",
        native.len()
    );
    native
}

fn initdb(dir: &Path) -> std::process::Output {
    let program = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|version| version.unwrap().path().join("bin/initdb"))
        .find(|path| path.exists())
        .expect("initdb is missing: install postgresql-15");
    let cluster = dir.join("cluster");
    run(
        "util-linux",
        &[
            "setpriv",
            "--reuid=postgres",
            "--regid=postgres",
            "--clear-groups",
            "--",
            program.to_str().unwrap(),
            "--no-locale",
            "--data-checksums",
            "-D",
            cluster.to_str().unwrap(),
        ],
    )
}

/// Every file below `dir` with its size, and so the set of the empty ones.
fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                left.push(entry.path());
            } else {
                let name = entry.path().strip_prefix(dir).unwrap().to_owned();
                found.insert(name, metadata.len());
            }
        }
    }
    found
}
