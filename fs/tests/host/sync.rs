//! Whether fsync, fdatasync, fsync of a directory and synchronous writes reach the
//! filesystem below.
//!
//! The filesystem below is itself a FUSE mount, of an honest server that logs the
//! requests it gets: what arrives there has gone through the real kernel twice.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::harness::{IO_MODES, Sandbox, Server};

/// What arrived below after each of five actions above.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    fsync: usize,
    fdatasync: usize,
    fsyncdir: usize,
}

pub(crate) fn sync_through(arguments: &[&str]) -> Arrived {
    let sandbox = Sandbox::new();
    let middle = sandbox.native();
    let below = Server::start(&sandbox.source(), &middle, &["--io", "direct"]);
    let above = Server::start(&middle, &sandbox.mountpoint(), arguments);
    let file = File::create(sandbox.mountpoint().join("f")).unwrap();
    for offset in 0..3 {
        file.write_all_at(b"x", offset).unwrap();
        file.sync_all().unwrap();
    }
    for offset in 3..5 {
        file.write_all_at(b"y", offset).unwrap();
        file.sync_data().unwrap();
    }
    File::open(sandbox.mountpoint())
        .unwrap()
        .sync_all()
        .unwrap();
    drop(file);
    above.unmount();
    let (_, log) = below.unmount();
    let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    let (all_files, all_dirs) = (count("FSYNC "), count("FSYNCDIR "));
    let data_only = log
        .iter()
        .filter(|line| line.contains("FSYNC ") && line.contains("datasync=true"))
        .count();
    Arrived {
        fsync: all_files - data_only,
        fdatasync: data_only,
        fsyncdir: all_dirs,
    }
}

pub(crate) const ALL: Arrived = Arrived {
    fsync: 3,
    fdatasync: 2,
    fsyncdir: 1,
};

#[test]
fn every_sync_arrives() {
    for mode in IO_MODES {
        assert_eq!(sync_through(&["--io", mode]), ALL, "{mode}");
    }
}

/// Which WRITE and FSYNC requests arrived below, in order, after three synchronous
/// writes and one that is not.
pub(crate) fn synchronous_writes_through(arguments: &[&str]) -> Vec<String> {
    let sandbox = Sandbox::new();
    let middle = sandbox.native();
    let below = Server::start(&sandbox.source(), &middle, &["--io", "direct"]);
    let above = Server::start(&middle, &sandbox.mountpoint(), arguments);
    let open = |flags| {
        let path = sandbox.mountpoint().join("f");
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(path)
            .unwrap()
    };
    open(libc::O_DSYNC).write_all_at(b"data", 0).unwrap();
    open(libc::O_SYNC).write_all_at(b"full", 0).unwrap();
    // One synchronous write on a file that is not.
    let plain = open(0);
    let bytes = [std::io::IoSlice::new(b"once")];
    let flags = rustix::io::ReadWriteFlags::DSYNC;
    rustix::io::pwritev2(&plain, &bytes, 0, flags).unwrap();
    plain.write_all_at(b"lazy", 0).unwrap();
    drop(plain);
    above.unmount();
    let (_, log) = below.unmount();
    assert_eq!(fs::read(sandbox.source().join("f")).unwrap(), b"lazy");
    let value = |line: &str, key: &str| {
        let (_, rest) = line.split_once(key).unwrap();
        rest.split(' ').next().unwrap().trim().to_owned()
    };
    log.iter()
        .filter_map(|line| {
            if line.contains("WRITE ") {
                Some(format!("WRITE {}", value(line, "sync=")))
            } else if line.contains("FSYNC ") {
                Some(format!("FSYNC {}", value(line, "datasync=")))
            } else {
                None
            }
        })
        .collect()
}

/// What arrives below where each write must be durable when it is answered.
pub(crate) const WRITES_THEMSELVES: [&str; 4] =
    ["WRITE Data", "WRITE Full", "WRITE Data", "WRITE No"];

#[test]
fn synchronous_writes_are_synchronous_below() {
    for mode in IO_MODES {
        let expected: &[&str] = match mode {
            // The kernel's page cache stands before the server, and FSYNC follows.
            "cached" | "writeback" => &[
                "WRITE No",
                "FSYNC true",
                "WRITE No",
                "FSYNC false",
                "WRITE No",
                "FSYNC true",
                "WRITE No",
            ],
            // Nothing follows: the write itself must do it.
            _ => &WRITES_THEMSELVES,
        };
        assert_eq!(
            synchronous_writes_through(&["--io", mode]),
            expected,
            "{mode}"
        );
    }
}

/// Which requests arrived at a server after a write and syncfs(2) on its mount.
fn requests_after_syncfs(mode: &str) -> Vec<String> {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&["--io", mode]);
    let file = File::create(sandbox.mountpoint().join("f")).unwrap();
    file.write_all_at(b"data", 0).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    // The control: what is asked for on the file itself is logged.
    file.sync_data().unwrap();
    drop(file);
    let (_, log) = server.unmount();
    let kinds = ["WRITE ", "SYNCFS", "FSYNC ", "FSYNCDIR "];
    log.iter()
        .filter_map(|line| kinds.iter().find(|kind| line.contains(*kind)))
        .map(|kind| kind.trim().to_owned())
        .collect()
}

/// The kernel keeps syncfs(2) and sync(2) to itself: `fuse_sync_fs` in fs/fuse/inode.c
/// asks the server only where `sync_fs` is set, and fs/fuse/virtio_fs.c alone sets it.
#[test]
fn syncfs_flushes_nothing_below() {
    for mode in IO_MODES {
        let expected: &[&str] = match mode {
            // The kernel writes the file itself.
            "passthrough" => &["FSYNC"],
            _ => &["WRITE", "FSYNC"],
        };
        assert_eq!(requests_after_syncfs(mode), expected, "{mode}");
    }
}
