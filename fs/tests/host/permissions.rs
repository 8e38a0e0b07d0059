//! Another user gets exactly what the modes allow, and owns what it makes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::harness::{Sandbox, run, run_ok};

const NOBODY: &str = "65534";
const GROUP: u32 = 12_345;

fn setpriv<'a>(groups: &'a [&'a str], script: &'a str) -> Vec<&'a str> {
    let mut argv = vec!["setpriv", "--reuid", NOBODY, "--regid", NOBODY];
    argv.extend(groups);
    argv.extend(["--", "sh", "-c", script]);
    argv
}

/// What a script of another user prints, each failure as `no`.
fn as_nobody(dir: &Path, groups: &[&str], script: &str) -> String {
    let script = format!(
        "umask 027; cd '{}' && {{ {script} }} 2>/dev/null",
        dir.display()
    );
    run_ok("util-linux", &setpriv(groups, &script))
}

fn prepare(dir: &Path) {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for (name, bits) in [
        ("secret", 0o600),
        ("public", 0o644),
        ("group", 0o660),
        ("all", 0o666),
    ] {
        fs::write(dir.join(name), name).unwrap();
        mode(&dir.join(name), bits).unwrap();
    }
    chown(dir.join("group"), None, Some(GROUP)).unwrap();
    for (name, bits) in [("closed", 0o700), ("sticky", 0o1777), ("setgid", 0o2770)] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("f"), "f").unwrap();
        mode(&dir.join(name), bits).unwrap();
    }
    chown(dir.join("setgid"), None, Some(GROUP)).unwrap();
    fs::write(dir.join("suid"), "x").unwrap();
    mode(&dir.join("suid"), 0o6777).unwrap();
}

const SCRIPT: &str = r#"
try() { if "$@" >/dev/null; then echo "ok $*"; else echo "no $*"; fi; }
for f in secret public group all closed/f; do
    try cat $f
    try sh -c "echo x >> $f"
    try chmod 777 $f
    try test -w $f
done
try ls closed
try rm sticky/f
try mv sticky/f sticky/g
try mkdir sticky/d
try touch sticky/mine
try ln -s x sticky/link
try mkfifo sticky/fifo
try mknod sticky/device c 1 3
try rm sticky/mine
try touch sticky/mine
try touch setgid/mine
try mkdir setgid/d
try sh -c 'echo x >> suid'
try chown 0 sticky/mine
try ln secret sticky/stolen
stat -c '%n %a %u %g' suid sticky/* setgid/* || echo "no stat"
"#;

#[test]
fn modes_and_owners_are_the_native_ones() {
    let sandbox = Sandbox::new();
    prepare(&sandbox.source());
    prepare(&sandbox.native());
    let server = sandbox.serve(&[]);
    let in_group = format!("--groups={GROUP}");
    for groups in [["--clear-groups"], [in_group.as_str()]] {
        let native = as_nobody(&sandbox.native(), &groups, SCRIPT);
        assert!(native.contains("no cat secret") && native.contains("ok cat public"));
        assert_eq!(as_nobody(&sandbox.mountpoint(), &groups, SCRIPT), native);
    }
    // What was made belongs to its maker in the source too, in the group of a
    // directory that says so.
    let owner = |name: &str| {
        let stat = fs::symlink_metadata(sandbox.source().join(name)).unwrap();
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };
    assert_eq!(owner("sticky/mine"), (65534, 65534, 0o640));
    assert_eq!(owner("sticky/link"), (65534, 65534, 0o777));
    assert_eq!(owner("setgid/mine"), (65534, GROUP, 0o640));
    assert_eq!(owner("setgid/d"), (65534, GROUP, 0o2750));
    // A write by somebody else takes the set-id bits away.
    assert_eq!(owner("suid").2, 0o777);
    server.unmount();
}

#[test]
fn after_other_users_root_still_makes_files_of_root() {
    let sandbox = Sandbox::new();
    fs::set_permissions(sandbox.source(), fs::Permissions::from_mode(0o1777)).unwrap();
    let server = sandbox.serve(&["--threads", "1"]);
    let theirs = sandbox.mountpoint().join("theirs");
    let script = format!("echo x > '{}'", theirs.display());
    assert!(
        run("util-linux", &setpriv(&["--clear-groups"], &script))
            .status
            .success()
    );
    fs::write(sandbox.mountpoint().join("ours"), "").unwrap();
    let uid = |name: &str| fs::metadata(sandbox.source().join(name)).unwrap().uid();
    assert_eq!((uid("theirs"), uid("ours")), (65534, 0));
    server.unmount();
}
