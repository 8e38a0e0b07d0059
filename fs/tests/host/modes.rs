//! A table of modes and owners: for each row another user gets from the mount, call by
//! call, what the plain directory gives it.

use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{Access, AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, Uid, XattrFlags};

use crate::harness::{IO_MODES, Sandbox, Server};

const USER: u32 = 1001;
const OTHER: u32 = 1002;
/// A group that the user may or may not have besides its own.
const GROUP: u32 = 12_345;

const DIR_MODES: [u32; 9] = [
    0o000, 0o700, 0o711, 0o755, 0o733, 0o770, 0o777, 0o1777, 0o2775,
];
const FILE_MODES: [u32; 8] = [0o000, 0o400, 0o600, 0o640, 0o664, 0o606, 0o666, 0o6755];
/// User and group of the directory, then of the file.
const OWNERS: [[(u32, u32); 2]; 6] = [
    [(0, 0), (0, 0)],
    [(0, GROUP), (0, GROUP)],
    [(0, 0), (USER, USER)],
    [(USER, USER), (OTHER, GROUP)],
    [(OTHER, GROUP), (USER, GROUP)],
    [(USER, GROUP), (0, 0)],
];

/// One directory with a file, and whose they are.
#[derive(Debug, Clone, Copy)]
struct Row {
    dir_mode: u32,
    file_mode: u32,
    owners: [(u32, u32); 2],
}

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for dir_mode in DIR_MODES {
        for file_mode in FILE_MODES {
            for owners in OWNERS {
                rows.push(Row {
                    dir_mode,
                    file_mode,
                    owners,
                });
            }
        }
    }
    rows
}

fn dir_of(base: &Path, row: usize) -> PathBuf {
    base.join(row.to_string())
}

fn prepare(base: &Path, rows: &[Row]) {
    for (number, row) in rows.iter().enumerate() {
        let dir = dir_of(base, number);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("f"), "content").unwrap();
        let [of_dir, of_file] = row.owners;
        for (path, mode, (user, group)) in [
            (dir.join("f"), row.file_mode, of_file),
            (dir, row.dir_mode, of_dir),
        ] {
            chown(&path, Some(user), Some(group)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// What the calls of the thread's user answer, in this order; the last ones take away what
/// the first ones need.
fn calls(dir: &Path) -> Vec<(&'static str, i32)> {
    let (f, new) = (dir.join("f"), dir.join("new"));
    let open = |path: &Path, flags| rustix::fs::open(path, flags, Mode::from(0o640)).map(drop);
    let access = |path: &Path, access| rustix::fs::access(path, access);
    let own = |user, group| {
        let (user, group) = (
            Option::<u32>::map(user, Uid::from_raw),
            Option::<u32>::map(group, Gid::from_raw),
        );
        rustix::fs::chown(&f, user, group)
    };
    let stamp = |seconds, nanoseconds| {
        let time = rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, &f, &times, AtFlags::empty())
    };
    let list = |dir: &Path| {
        fs::read_dir(dir)
            .map(drop)
            .map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap())
    };
    let mut value = [0; 8];
    let calls = [
        ("stat", rustix::fs::stat(&f).map(drop)),
        ("list", list(dir)),
        ("may read", access(&f, Access::READ_OK)),
        ("may write", access(&f, Access::WRITE_OK)),
        ("may run", access(&f, Access::EXEC_OK)),
        ("may enter", access(dir, Access::EXEC_OK)),
        ("may make", access(dir, Access::WRITE_OK)),
        ("read", open(&f, OFlags::RDONLY)),
        ("write", open(&f, OFlags::WRONLY)),
        ("append", open(&f, OFlags::WRONLY | OFlags::APPEND)),
        ("both", open(&f, OFlags::RDWR)),
        ("noatime", open(&f, OFlags::RDONLY | OFlags::NOATIME)),
        ("truncating", open(&f, OFlags::WRONLY | OFlags::TRUNC)),
        ("create over", open(&f, OFlags::WRONLY | OFlags::CREATE)),
        ("unnamed", open(dir, OFlags::WRONLY | OFlags::TMPFILE)),
        ("touch", stamp(0, rustix::fs::UTIME_NOW)),
        ("date", stamp(1, 0)),
        (
            "set attribute",
            rustix::fs::setxattr(&f, "user.x", b"v", XattrFlags::empty()),
        ),
        (
            "attribute",
            rustix::fs::getxattr(&f, "user.x", &mut value).map(drop),
        ),
        (
            "trusted",
            rustix::fs::setxattr(&f, "trusted.x", b"v", XattrFlags::empty()),
        ),
        ("link", rustix::fs::link(&f, dir.join("linked"))),
        ("rename", rustix::fs::rename(&f, dir.join("renamed"))),
        ("rename back", rustix::fs::rename(dir.join("renamed"), &f)),
        (
            "create",
            open(&new, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL),
        ),
        ("replace", rustix::fs::rename(&new, dir.join("linked"))),
        (
            "mkdir",
            rustix::fs::mkdir(dir.join("d"), Mode::from(0o2770)),
        ),
        ("symlink", rustix::fs::symlink("f", dir.join("s"))),
        ("to group", own(None, Some(GROUP))),
        ("to own group", own(None, Some(USER))),
        ("give away", own(Some(OTHER), None)),
        ("chmod", rustix::fs::chmod(&f, Mode::from(0o2666))),
        ("read again", open(&f, OFlags::RDWR)),
        ("unlink", rustix::fs::unlink(&f)),
        ("chmod above", rustix::fs::chmod(dir, Mode::from(0o777))),
        ("unlink after it", rustix::fs::unlink(&f)),
    ];
    calls
        .into_iter()
        .map(|(call, done)| (call, done.err().map_or(0, rustix::io::Errno::raw_os_error)))
        .collect()
}

/// Runs as a thread of `USER` with these groups besides its own, in which no capability
/// is left (capabilities(7), "Effect of user ID changes on capabilities").
fn as_user<T: Send>(groups: &[u32], run: impl FnOnce() -> T + Send) -> T {
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    let unprivileged = || {
        rustix::thread::set_thread_groups(&groups).unwrap();
        rustix::thread::set_thread_gid(Gid::from_raw(USER)).unwrap();
        rustix::thread::set_thread_uid(Uid::from_raw(USER)).unwrap();
        run()
    };
    thread::scope(|scope| scope.spawn(unprivileged).join().unwrap())
}

/// Names, modes and owners of what is left of a row.
fn left(dir: &Path) -> Vec<String> {
    let show = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        let (mode, user, group) = (stat.mode(), stat.uid(), stat.gid());
        let name = path.file_name().unwrap();
        format!("{name:?} {mode:o} {user} {group} {}", stat.nlink())
    };
    let names = fs::read_dir(dir).unwrap();
    let mut shown: Vec<_> = names.map(|entry| show(&entry.unwrap().path())).collect();
    shown.sort();
    shown.insert(0, show(dir));
    shown
}

fn compare(groups: &[u32], arguments: &[&str]) {
    let sandbox = Sandbox::new();
    let (source, mount, native) = (sandbox.source(), sandbox.mountpoint(), sandbox.native());
    let rows = rows();
    prepare(&source, &rows);
    prepare(&native, &rows);
    let server = Server::start_quietly(&source, &mount, arguments);
    let (mut allowed, mut refused) = (0, 0);
    let all = |base: &Path| {
        let answers = (0..rows.len()).map(|row| calls(&dir_of(base, row)));
        answers.collect::<Vec<_>>()
    };
    let (expected, found) = as_user(groups, || (all(&native), all(&mount)));
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(
            found[number], expected[number],
            "{row:?}, groups {groups:?}"
        );
        let left_natively = left(&dir_of(&native, number));
        assert_eq!(left(&dir_of(&source, number)), left_natively, "{row:?}");
        let fine = expected[number].iter().filter(|call| call.1 == 0).count();
        allowed += fine;
        refused += expected[number].len() - fine;
    }
    println!(
        "{} rows: {allowed} calls allowed, {refused} refused",
        rows.len()
    );
    // Control: the table has both, for every call but the two that nobody may make.
    for (index, (call, _)) in expected[0].iter().enumerate() {
        let answers = || expected.iter().map(|row| row[index].1);
        assert!(answers().any(|errno| errno != 0), "{call} is never refused");
        let never = ["trusted", "give away"].contains(call);
        assert_eq!(answers().all(|errno| errno != 0), never, "{call}");
    }
    server.unmount();
}

#[test]
fn another_user_gets_what_the_modes_allow() {
    compare(&[], &[]);
}

#[test]
fn so_does_a_member_of_a_supplementary_group() {
    compare(&[GROUP], &[]);
}

#[test]
fn so_it_does_when_nothing_is_cached() {
    compare(&[GROUP], &["--cache", "none", "--io", "direct"]);
}

/// Changes the content of files that run as somebody else, as one who may write them.
fn change_contents(dir: &Path) {
    let open = |name: &str| {
        let file = fs::File::options()
            .read(true)
            .write(true)
            .open(dir.join(name));
        file.unwrap()
    };
    std::os::unix::fs::FileExt::write_at(&open("write"), b"new", 0).unwrap();
    open("truncate").set_len(3).unwrap();
    let (none, keep) = (FallocateFlags::empty(), FallocateFlags::KEEP_SIZE);
    for (name, mode) in [
        ("allocate", none),
        ("keep size", keep),
        ("punch", keep | FallocateFlags::PUNCH_HOLE),
        ("zero", FallocateFlags::ZERO_RANGE),
    ] {
        rustix::fs::fallocate(open(name), mode, 0, 9).unwrap();
    }
    let from = open("from");
    let copied = rustix::fs::copy_file_range(&from, Some(&mut 0), open("copy"), Some(&mut 0), 3);
    assert_eq!(copied, Ok(3));
}

#[test]
fn set_id_bits_go_with_every_change_of_the_content_by_another_user() {
    let names = [
        "write",
        "truncate",
        "allocate",
        "keep size",
        "punch",
        "zero",
        "copy",
    ];
    for arguments in [
        &[][..],
        &["--cache", "none", "--io", "direct"],
        &["--io", "writeback"],
    ] {
        let sandbox = Sandbox::new();
        let (source, mount, native) = (sandbox.source(), sandbox.mountpoint(), sandbox.native());
        for dir in [&source, &native] {
            for name in names.iter().chain(&["from"]) {
                fs::write(dir.join(name), "content").unwrap();
                fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o6777)).unwrap();
            }
        }
        let server = Server::start_quietly(&source, &mount, arguments);
        let modes =
            |dir: &Path| names.map(|name| (name, fs::metadata(dir.join(name)).unwrap().mode()));
        // Known to the kernel beforehand.
        assert_eq!(modes(&mount), names.map(|name| (name, 0o106_777)));
        as_user(&[], || {
            [&native, &mount]
                .into_iter()
                .for_each(|dir| change_contents(dir))
        });
        assert_eq!(modes(&native), names.map(|name| (name, 0o100_777)));
        assert_eq!(modes(&source), modes(&native), "{arguments:?}");
        assert_eq!(modes(&mount), modes(&native), "{arguments:?}");
        // The superuser keeps them.
        for dir in [&native, &source] {
            for name in names {
                fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o6777)).unwrap();
            }
        }
        for dir in [&native, &mount] {
            change_contents(dir);
        }
        assert_eq!(modes(&source), modes(&native), "{arguments:?}, superuser");
        server.unmount();
    }
}

/// A thread that has opened a file to passthrough has put aside what this takes.
#[test]
fn the_superuser_may_give_set_group_id_for_a_group_that_is_not_its_own() {
    for mode in IO_MODES {
        let sandbox = Sandbox::new();
        let (source, mount, native) = (sandbox.source(), sandbox.mountpoint(), sandbox.native());
        for dir in [&native, &source] {
            let shared = dir.join("shared");
            fs::create_dir(&shared).unwrap();
            chown(&shared, None, Some(GROUP)).unwrap();
            fs::set_permissions(&shared, fs::Permissions::from_mode(0o2755)).unwrap();
        }
        let server = sandbox.serve(&["--io", mode, "--threads", "1"]);
        for dir in [&native, &mount] {
            let open = |name: &str, mode| {
                let mut options = fs::File::options();
                options.write(true).create_new(true).mode(mode);
                options.open(dir.join(name)).unwrap()
            };
            let give = |name: &str| {
                chown(dir.join(name), None, Some(GROUP)).unwrap();
                fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o2755)).unwrap();
            };
            let _first = open("file", 0o644);
            give("file");
            let _second = open("another", 0o644);
            fs::create_dir(dir.join("group")).unwrap();
            give("group");
            let _third = open("a third", 0o644);
            let _made = open("shared/made", 0o2755);
        }
        for name in ["file", "group", "shared/made"] {
            let bits = |dir: &Path| fs::metadata(dir.join(name)).unwrap().mode();
            assert_eq!(bits(&source), bits(&native), "{mode}: {name}");
            assert_eq!(bits(&native) & 0o2000, 0o2000, "{name}");
        }
        server.unmount();
    }
}
