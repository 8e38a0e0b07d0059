//! The borders of the source: what lies above it, what is linked or moved out of it,
//! what is mounted below it, and what takes its place.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat_with};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::exchange::snapshot;
use crate::harness::{Sandbox, shell};

/// The cache policies: with `always` the kernel asks as little as it can.
const POLICIES: [&str; 3] = ["none", "auto", "always"];

fn hold(dir: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).unwrap()
}

/// Device and inode number, by which two names are found to be one directory.
fn identity(dir: impl std::os::fd::AsFd, path: &str) -> (u64, u64) {
    let stat = rustix::fs::statat(dir, path, AtFlags::empty()).unwrap();
    (stat.st_dev, stat.st_ino)
}

fn identity_of(path: &Path) -> (u64, u64) {
    identity(CWD, path.to_str().unwrap())
}

fn move_to(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

#[test]
fn above_the_root_is_what_the_mount_is_on() {
    for policy in POLICIES {
        let sandbox = Sandbox::new();
        let (source, mount) = (sandbox.source(), sandbox.mountpoint());
        fs::create_dir_all(source.join("a/b/c/d")).unwrap();
        fs::create_dir(source.join("x")).unwrap();
        let server = sandbox.serve(&["--cache", policy]);
        let sees = |held: &OwnedFd, steps: &[(&str, &Path)]| {
            for (path, expected) in steps {
                assert_eq!(
                    identity(held, path),
                    identity_of(expected),
                    "{path}, {policy}"
                );
            }
        };
        let above = mount.parent().unwrap();
        sees(
            &hold(&mount),
            &[(".", &mount), ("..", above), ("a/..", &mount)],
        );
        let held = hold(&mount.join("a/b/c/d"));
        // Through the mount: the kernel moves what it knows along.
        move_to(&mount.join("a/b/c"), &mount.join("x/c"));
        let in_x = [
            ("../..", &*mount.join("x")),
            ("../../..", &mount),
            ("../../../..", above),
        ];
        sees(&held, &in_x);
        let exchange = RenameFlags::EXCHANGE;
        renameat_with(CWD, mount.join("x"), CWD, mount.join("a"), exchange).unwrap();
        sees(
            &held,
            &[("../..", &mount.join("a")), ("../../../..", above)],
        );
        // Behind it: the kernel learns it from the first who uses the new name.
        move_to(&source.join("a/c"), &source.join("c"));
        sees(
            &held,
            &[
                ("..", &mount.join("c")),
                ("../..", &mount),
                ("../../..", above),
            ],
        );
        assert_ne!(identity_of(above), identity_of(&mount));
        drop(held);
        server.unmount();
    }
}

/// What is moved out of the source while it is in use stays in use, as natively: it is the
/// same directory. `..` stays what the kernel last knew, within the mount, so nothing
/// beside the moved directory can be reached, not even by its own name.
#[test]
fn a_directory_moved_out_of_the_source_gives_access_to_itself_alone() {
    for policy in POLICIES {
        let sandbox = Sandbox::new();
        let (source, mount) = (sandbox.source(), sandbox.mountpoint());
        let outside = sandbox.path("outside");
        fs::create_dir_all(source.join("a/b/sub")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        let server = sandbox.serve(&["--cache", policy]);
        let held = hold(&mount.join("a/b"));
        move_to(&source.join("a/b"), &outside.join("b"));
        let before = snapshot(&outside);
        let flags = OFlags::CREATE | OFlags::RDWR;
        drop(openat(&held, "sub/new", flags, Mode::RUSR).unwrap());
        assert!(outside.join("b/sub/new").exists());
        assert_eq!(identity(&held, ".."), identity_of(&mount.join("a")));
        for secret in ["../secret", "../../secret", "../b/../secret"] {
            let opened = openat(&held, secret, OFlags::RDONLY, Mode::empty());
            assert_eq!(opened.unwrap_err(), Errno::NOENT, "{secret}");
        }
        // Control: natively the same path leads to the secret.
        let native = hold(&outside.join("b"));
        openat(&native, "../secret", OFlags::RDONLY, Mode::empty()).unwrap();
        drop((native, held));
        fs::remove_file(outside.join("b/sub/new")).unwrap();
        let kept = |path: &str| (before[&outside.join(path)]).clone();
        assert_eq!(snapshot(&outside)[&outside.join("secret")], kept("secret"));
        server.unmount();
    }
}

#[test]
fn a_hard_link_out_of_the_source_is_one_file_and_none_can_be_made() {
    let sandbox = Sandbox::new();
    let (source, mount, outside) = (
        sandbox.source(),
        sandbox.mountpoint(),
        sandbox.path("outside"),
    );
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("twin"), "old").unwrap();
    fs::hard_link(outside.join("twin"), source.join("twin")).unwrap();
    let server = sandbox.serve(&[]);
    fs::write(mount.join("twin"), "written").unwrap();
    assert_eq!(fs::read_to_string(outside.join("twin")).unwrap(), "written");
    assert_eq!(fs::metadata(mount.join("twin")).unwrap().nlink(), 2);
    fs::write(outside.join("other"), "other").unwrap();
    fs::write(mount.join("ours"), "ours").unwrap();
    let held = |path: &Path| File::open(path).unwrap();
    for (from, to) in [
        (outside.join("other"), mount.join("new")),
        (mount.join("ours"), outside.join("new")),
        // From one side of the same filesystem to the other, which only a name gives away.
        (source.join("ours"), mount.join("new")),
        (mount.join("ours"), source.join("new")),
    ] {
        let empty = AtFlags::empty();
        assert_eq!(linkat(CWD, &from, CWD, &to, empty), Err(Errno::XDEV));
        let file = held(&from);
        let by_descriptor = linkat(&file, "", CWD, &to, AtFlags::EMPTY_PATH);
        assert_eq!(by_descriptor, Err(Errno::XDEV));
        assert_eq!(rustix::fs::rename(&from, &to), Err(Errno::XDEV));
    }
    // Control: where no mount lies between, it works.
    linkat(
        CWD,
        outside.join("other"),
        CWD,
        source.join("new"),
        AtFlags::empty(),
    )
    .unwrap();
    server.unmount();
}

/// Binds a directory of the same filesystem, and mounts another filesystem, below the
/// source; each holds a `secret`.
fn mount_below(sandbox: &Sandbox) {
    let (source, outside) = (sandbox.source(), sandbox.path("outside"));
    fs::create_dir(&outside).unwrap();
    mount_bind(&outside, source.join("p/bound")).unwrap();
    let tmpfs = source.join("p/tmpfs");
    mount("tmpfs", &tmpfs, "tmpfs", MountFlags::empty(), None).unwrap();
    for below in ["p/bound", "p/tmpfs"] {
        fs::write(source.join(below).join("secret"), "secret").unwrap();
    }
}

#[test]
fn what_is_mounted_below_the_source_is_not_entered_nor_moved_into_view() {
    for policy in POLICIES {
        let sandbox = Sandbox::new();
        let (source, mount) = (sandbox.source(), sandbox.mountpoint());
        for below in ["p/bound", "p/tmpfs"] {
            fs::create_dir_all(source.join(below)).unwrap();
        }
        fs::create_dir(source.join("empty")).unwrap();
        let server = sandbox.serve(&["--cache", policy]);
        // The kernel knows one of them from before and goes on with what it knows.
        let held = hold(&mount.join("p/bound"));
        mount_below(&sandbox);
        let before = snapshot(&sandbox.path("outside"));
        let secret = |dir: &str| fs::read_to_string(source.join(dir).join("secret"));
        // Control: by path the secrets are there.
        assert_eq!(
            secret("p/bound").unwrap() + &secret("p/tmpfs").unwrap(),
            "secretsecret"
        );
        let read_held = openat(&held, "secret", OFlags::RDONLY, Mode::empty());
        assert_eq!(read_held.unwrap_err(), Errno::NOENT);
        let flags = OFlags::CREATE | OFlags::WRONLY;
        drop(openat(&held, "covered", flags, Mode::RUSR).unwrap());
        for (parent, below) in [
            ("p", "bound"),
            ("p", "tmpfs"),
            ("q", "bound"),
            ("q", "tmpfs"),
        ] {
            if parent == "q" && mount.join("p").exists() {
                // What holds mount points may be renamed; they stay where they are in it.
                move_to(&mount.join("p"), &mount.join("q"));
            }
            let dir = mount.join(parent).join(below);
            let refused = [
                rustix::fs::open(dir.join("secret"), OFlags::RDONLY, Mode::empty()).err(),
                rustix::fs::unlinkat(CWD, dir.join("secret"), AtFlags::empty()).err(),
                rustix::fs::rmdir(&dir).err(),
                rustix::fs::rename(&dir, mount.join("taken")).err(),
                rustix::fs::rename(mount.join("empty"), &dir).err(),
                renameat_with(CWD, &dir, CWD, mount.join("empty"), RenameFlags::EXCHANGE).err(),
                rustix::fs::mkdir(&dir, Mode::RWXU).err(),
            ];
            for (call, error) in refused.into_iter().enumerate() {
                let expected = [Errno::XDEV, Errno::BUSY, Errno::EXIST, Errno::NOENT];
                let error = error.unwrap_or_else(|| panic!("call {call} on {dir:?}, {policy}"));
                assert!(
                    expected.contains(&error),
                    "call {call} on {dir:?}: {error}, {policy}"
                );
            }
        }
        assert_eq!(
            secret("q/bound").unwrap() + &secret("q/tmpfs").unwrap(),
            "secretsecret"
        );
        assert_eq!(snapshot(&sandbox.path("outside")), before);
        drop(held);
        server.unmount();
        // Uncovered, what was made through the held directory is in the covered one.
        unmount(source.join("q/bound"), UnmountFlags::empty()).unwrap();
        assert!(source.join("q/bound/covered").exists());
    }
}

#[test]
fn the_server_stays_with_the_directory_that_it_was_given() {
    for policy in POLICIES {
        let sandbox = Sandbox::new();
        let (source, mount, outside) = (
            sandbox.source(),
            sandbox.mountpoint(),
            sandbox.path("outside"),
        );
        for dir in [&source, &outside] {
            fs::create_dir_all(dir.join("d")).unwrap();
            fs::write(
                dir.join("d/name"),
                dir.file_name().unwrap().as_encoded_bytes(),
            )
            .unwrap();
        }
        let before = snapshot(&outside);
        let server = sandbox.serve(&["--cache", policy]);
        // First another directory in its place, then a link to it.
        let moved = sandbox.path("moved");
        renameat_with(CWD, &source, CWD, &outside, RenameFlags::EXCHANGE).unwrap();
        let read = || fs::read_to_string(mount.join("d/name")).unwrap();
        assert_eq!(read(), "source");
        renameat_with(CWD, &source, CWD, &outside, RenameFlags::EXCHANGE).unwrap();
        // Or something is mounted over it.
        mount_bind(&outside, &source).unwrap();
        assert_eq!(
            fs::read_to_string(source.join("d/name")).unwrap(),
            "outside"
        );
        assert_eq!(read(), "source");
        unmount(&source, UnmountFlags::empty()).unwrap();
        move_to(&source, &moved);
        symlink(&outside, &source).unwrap();
        assert_eq!(read(), "source");
        fs::write(mount.join("d/new"), "new").unwrap();
        assert_eq!(fs::read_to_string(moved.join("d/new")).unwrap(), "new");
        // Control: by its path the source is now what is outside.
        assert_eq!(
            fs::read_to_string(source.join("d/name")).unwrap(),
            "outside"
        );
        let fixed = |tree: std::collections::BTreeMap<_, _>| {
            tree.into_iter()
                .filter(|(path, _)| *path != outside)
                .collect::<Vec<_>>()
        };
        // Its own time of change is the exchange's.
        assert_eq!(fixed(snapshot(&outside)), fixed(before));
        server.unmount();
    }
}

#[test]
fn a_shell_in_the_mount_finds_no_way_out() {
    let sandbox = Sandbox::new();
    fs::create_dir_all(sandbox.source().join("a/b")).unwrap();
    let server = sandbox.serve(&[]);
    let mount = sandbox.mountpoint();
    let climbed = shell(
        &mount.join("a/b"),
        "mv ../../a/b ../../b; cd -P .; cd -P ..; ls; cd -P ..; ls -d mount source",
    );
    assert_eq!(climbed, "a\nb\nmount\nsource\n");
    server.unmount();
}
