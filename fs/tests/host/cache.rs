//! What the mount shows of changes that something else makes to the source, by cache
//! policy and I/O mode.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{IO_MODES, Sandbox};

/// How long a change may take to be seen under `--cache auto`: a second, on a busy
/// machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Which of five changes a program sees that has looked at everything before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// A name that was not there.
    new_name: bool,
    /// A name that is no more.
    lost_name: bool,
    /// stat(2) of a file that has grown.
    size: bool,
    /// A read of that file through a descriptor that was open before.
    read: bool,
    /// A read of it through a descriptor that was opened after the change.
    reopened: bool,
}

const EVERYTHING: Seen = Seen {
    new_name: true,
    lost_name: true,
    size: true,
    read: true,
    reopened: true,
};

/// Whether what is seen at last is `expected`: at once, or under `auto` when what was
/// believed has expired.
fn look(mode: &str, cache: &str, expected: Seen) {
    let sandbox = Sandbox::new();
    let (source, mount) = (sandbox.source(), sandbox.mountpoint());
    fs::write(source.join("f"), "old").unwrap();
    fs::write(source.join("lost"), "").unwrap();
    let server = sandbox.serve(&["--io", mode, "--cache", cache]);
    let open = || File::open(mount.join("f")).unwrap();
    let before = open();
    let content = |file: &File| {
        let mut buffer = [0; 16];
        let count = file.read_at(&mut buffer, 0).unwrap();
        buffer[..count].to_vec()
    };
    let is_there = |name: &str| Path::exists(&mount.join(name));
    assert_eq!(content(&before), b"old");
    // A read makes the time of access unknown; with it known stat(2) need not ask.
    let size = || fs::metadata(mount.join("f")).unwrap().len();
    assert_eq!(size(), 3);
    assert!(!is_there("new") && is_there("lost"));
    fs::write(source.join("f"), "new and longer").unwrap();
    fs::write(source.join("new"), "").unwrap();
    fs::remove_file(source.join("lost")).unwrap();
    let end = Instant::now() + DEADLINE;
    let seen = loop {
        let seen = Seen {
            new_name: is_there("new"),
            lost_name: !is_there("lost"),
            size: size() == 14,
            read: content(&before) == b"new and longer",
            reopened: content(&open()) == b"new and longer",
        };
        if seen == expected || cache != "auto" || Instant::now() > end {
            break seen;
        }
    };
    assert_eq!(seen, expected, "--io {mode} --cache {cache}");
    drop(before);
    server.unmount();
}

/// A kernel that writes back later takes its own word for the size of a regular file
/// that it knows, and for its times, whatever the server says (`fuse_get_cache_mask` in
/// fs/fuse/inode.c).
const ALL_BUT_CONTENTS: Seen = Seen {
    size: false,
    read: false,
    reopened: false,
    ..EVERYTHING
};

#[test]
fn without_a_cache_changes_below_are_seen_at_once() {
    for mode in ["passthrough", "cached", "direct"] {
        look(mode, "none", EVERYTHING);
    }
}

#[test]
fn by_default_changes_below_are_seen_when_a_second_is_over() {
    for mode in ["passthrough", "cached", "direct"] {
        look(mode, "auto", EVERYTHING);
    }
}

#[test]
fn write_back_misses_changes_of_files_under_every_policy() {
    look("writeback", "none", ALL_BUT_CONTENTS);
    look("writeback", "auto", ALL_BUT_CONTENTS);
}

#[test]
fn a_cache_for_always_misses_changes_below() {
    let nothing = Seen {
        new_name: false,
        lost_name: false,
        ..ALL_BUT_CONTENTS
    };
    for mode in IO_MODES {
        let reads_below = ["passthrough", "direct"].contains(&mode);
        let expected = Seen {
            read: reads_below,
            reopened: reads_below,
            ..nothing
        };
        look(mode, "always", expected);
    }
}
