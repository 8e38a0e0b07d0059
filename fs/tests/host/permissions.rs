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
        "umask 027; cd '{}' && {{ {script}\n}} 2>/dev/null",
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
    let owner = |name: &str| {
        let stat = fs::metadata(sandbox.source().join(name)).unwrap();
        (stat.uid(), stat.gid())
    };
    assert_eq!((owner("theirs"), owner("ours")), ((65534, 65534), (0, 0)));
    server.unmount();
}

/// An ACL as the attribute's value holds it (include/uapi/linux/posix_acl_xattr.h).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

fn set_acl(path: &Path, kind: &str, user: (u32, u16)) {
    let value = acl(&[
        (OWNER, 7, NO_ID),
        (USER, user.1, user.0),
        (OWNING_GROUP, 0, NO_ID),
        (MASK, 7, NO_ID),
        (OTHER, 0, NO_ID),
    ]);
    let name = format!("system.posix_acl_{kind}");
    rustix::fs::setxattr(path, &name, &value, rustix::fs::XattrFlags::empty()).unwrap();
}

#[test]
fn access_control_lists_count_as_natively() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let prepare = |dir: &Path| {
        for name in ["mine", "theirs"] {
            fs::write(dir.join(name), name).unwrap();
            chown(dir.join(name), None, Some(65534)).unwrap();
        }
        // Their group has the mode's bits (the mask), but not by the ACL.
        set_acl(&dir.join("mine"), "access", (65534, 6));
        set_acl(&dir.join("theirs"), "access", (4711, 7));
        fs::create_dir(dir.join("default")).unwrap();
        fs::set_permissions(dir.join("default"), fs::Permissions::from_mode(0o777)).unwrap();
        set_acl(&dir.join("default"), "default", (4711, 7));
        fs::create_dir(dir.join("plain")).unwrap();
        fs::set_permissions(dir.join("plain"), fs::Permissions::from_mode(0o777)).unwrap();
    };
    let script = "cat mine || echo no; echo x >> mine && echo yes; cat theirs || echo no
        touch default/f plain/f; mkdir default/d plain/d
        stat -c '%n %a %u' mine theirs default/* plain/*";
    let outcome = |dir: &Path| {
        prepare(dir);
        let printed = as_nobody(dir, &["--clear-groups"], script);
        let inherited = |name: &str, kind: &str| {
            let mut value = vec![0; 200];
            let name = dir.join(name);
            let kind = format!("system.posix_acl_{kind}");
            let length = rustix::fs::getxattr(name, kind, &mut value[..]);
            (length, value)
        };
        let lists = ["access", "default"].map(|kind| inherited("default/d", kind));
        (printed, lists)
    };
    let native = outcome(&sandbox.native());
    assert!(native.0.starts_with("mineyes\nno\n"), "{}", native.0);
    assert_eq!(outcome(&sandbox.mountpoint()), native);
    server.unmount();
}
