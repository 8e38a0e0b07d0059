//! Errors of the filesystem below reach the caller as they are.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timestamps, Uid, XattrFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use crate::harness::Sandbox;

#[test]
fn a_read_only_source_says_so_to_every_change() {
    let sandbox = Sandbox::new();
    let source = sandbox.source();
    fs::write(source.join("f"), "content").unwrap();
    fs::create_dir(source.join("d")).unwrap();
    mount_bind(&source, &source).unwrap();
    let read_only = MountFlags::BIND | MountFlags::RDONLY;
    mount_remount(&source, read_only, "").unwrap();
    let server = sandbox.serve(&[]);
    for (what, answer) in changes(&sandbox.mountpoint()) {
        assert_eq!(answer, Err(Errno::ROFS), "{what}");
    }
    assert_eq!(
        fs::read(sandbox.mountpoint().join("f")).unwrap(),
        b"content"
    );
    server.unmount();
    unmount(&source, UnmountFlags::empty()).unwrap();
}

fn changes(dir: &Path) -> Vec<(&'static str, Result<()>)> {
    let (f, new, none) = (dir.join("f"), dir.join("new"), AtFlags::empty());
    let mode = Mode::from_raw_mode(0o600);
    let open = |path: &Path, flags| rustix::fs::open(path, flags, mode).map(drop);
    let node = |kind| rustix::fs::mknodat(CWD, &new, kind, mode, 0);
    let now = Timestamps {
        last_access: TIME,
        last_modification: TIME,
    };
    vec![
        ("create", open(&new, OFlags::CREATE | OFlags::WRONLY)),
        ("open to write", open(&f, OFlags::WRONLY)),
        ("truncate", open(&f, OFlags::RDONLY | OFlags::TRUNC)),
        ("mkdir", rustix::fs::mkdir(&new, mode)),
        ("mknod", node(FileType::Fifo)),
        ("symlink", rustix::fs::symlink("f", &new)),
        ("link", rustix::fs::link(&f, &new)),
        ("unlink", rustix::fs::unlink(&f)),
        ("rmdir", rustix::fs::rmdir(dir.join("d"))),
        ("rename", rustix::fs::rename(&f, &new)),
        ("chmod", rustix::fs::chmod(&f, mode)),
        (
            "chown",
            rustix::fs::chownat(CWD, &f, Some(Uid::from_raw(7)), None, none),
        ),
        ("utimensat", rustix::fs::utimensat(CWD, &f, &now, none)),
        (
            "setxattr",
            rustix::fs::setxattr(&f, "user.a", b"1", XattrFlags::empty()),
        ),
        ("removexattr", rustix::fs::removexattr(&f, "user.a")),
    ]
}

const TIME: rustix::fs::Timespec = rustix::fs::Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

#[test]
fn a_full_source_says_so_and_keeps_what_it_acknowledged() {
    for mode in ["cached", "direct"] {
        let sandbox = Sandbox::new();
        let source = sandbox.source();
        mount("full", &source, "tmpfs", MountFlags::empty(), c"size=256k").unwrap();
        let server = sandbox.serve(&["--io", mode]);
        let mut file = File::create(sandbox.mountpoint().join("f")).unwrap();
        let mut acknowledged = 0;
        let error = loop {
            // Not a multiple of the page: the last write may be a short one.
            match file.write(&[1; 30_000]) {
                Ok(count) => acknowledged += count,
                Err(error) => break error,
            }
            assert!(acknowledged <= 256 << 10);
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{mode}");
        assert!(acknowledged > 200 << 10);
        file.sync_all().unwrap();
        drop(file);
        let made = rustix::fs::symlink("t".repeat(4000), sandbox.mountpoint().join("l"));
        assert_eq!(made, Err(Errno::NOSPC));
        server.unmount();
        let kept = fs::read(source.join("f")).unwrap();
        assert!(kept.len() >= acknowledged && kept.iter().all(|byte| *byte == 1));
        unmount(&source, UnmountFlags::empty()).unwrap();
    }
}
