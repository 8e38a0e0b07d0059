//! The same operations on a mount and on a plain directory of the same filesystem:
//! results, errno and everything that stat shows must be equal.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec,
    Timestamps, Uid,
};
use rustix::io::{Errno, Result};

use crate::harness::Sandbox;

#[test]
fn results_and_attributes_are_the_native_ones() {
    equal_to_native(&[]);
}

#[test]
fn results_and_attributes_are_the_native_ones_in_direct_mode() {
    equal_to_native(&["--io", "direct"]);
}

fn equal_to_native(arguments: &[&str]) {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(arguments);
    let on_mount = Steps::perform(&sandbox.mountpoint());
    let on_native = Steps::perform(&sandbox.native());
    assert!(on_native.len() > 60, "{} steps", on_native.len());
    for (mount, native) in on_mount.iter().zip(&on_native) {
        assert_eq!(mount, native, "left: mount, right: native");
    }
    let native = tree(&sandbox.native());
    assert!(native.len() > 15, "{native:#?}");
    assert_same(&tree(&sandbox.mountpoint()), &native);
    server.unmount();
    assert_same(&tree(&sandbox.source()), &native);
}

fn assert_same(left: &BTreeMap<Vec<u8>, String>, native: &BTreeMap<Vec<u8>, String>) {
    for (path, shown) in native {
        let path_text = String::from_utf8_lossy(path);
        assert_eq!(left.get(path), Some(shown), "{path_text}");
    }
    assert_eq!(left.len(), native.len());
}

/// What each step answered, in order.
struct Steps<'a> {
    dir: &'a Path,
    log: Vec<String>,
}

impl<'a> Steps<'a> {
    fn perform(dir: &'a Path) -> Vec<String> {
        let mut steps = Steps {
            dir,
            log: Vec::new(),
        };
        steps.making();
        steps.renaming();
        steps.changing();
        steps.removing();
        steps.log
    }

    fn step<T: Debug>(&mut self, what: &str, step: impl FnOnce(OwnedFd) -> Result<T>) {
        let dir = rustix::fs::open(self.dir, OFlags::DIRECTORY, Mode::empty()).unwrap();
        self.log.push(format!("{what}: {:?}", step(dir)));
    }

    fn open(&mut self, name: &str, flags: OFlags) {
        self.step(&format!("open {name} {flags:?}"), |dir| {
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o640)).map(drop)
        });
    }

    fn mkdir(&mut self, name: &str) {
        self.step(&format!("mkdir {name}"), |dir| {
            rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o1751))
        });
    }

    fn making(&mut self) {
        for name in ["a", "a", "a/b", "x/y", "a/.", "d", "e", "full"] {
            self.mkdir(name);
        }
        self.mkdir(&"n".repeat(255));
        self.mkdir(&"n".repeat(256));
        let create = OFlags::CREATE | OFlags::RDWR;
        for name in ["f", "g", "h", "full/inside", "a/f", "nowhere/f"] {
            self.open(name, create);
        }
        self.open("f", create | OFlags::EXCL);
        self.open("a", OFlags::RDWR);
        self.open("f", OFlags::DIRECTORY);
        self.open("f/under", OFlags::RDONLY);
        self.open("absent", OFlags::RDONLY);
        for (target, name) in [("f", "s"), ("absent", "dangling"), ("x", "f")] {
            self.step(&format!("symlink {name}"), |dir| {
                rustix::fs::symlinkat(target, dir, name)
            });
        }
        self.step("long symlink", |dir| {
            rustix::fs::symlinkat("t".repeat(4000), dir, "longlink")
        });
        self.open("s", OFlags::RDONLY | OFlags::NOFOLLOW);
        self.open("dangling", OFlags::RDONLY);
        for name in ["s", "f", "absent"] {
            self.step(&format!("readlink {name}"), |dir| {
                rustix::fs::readlinkat(dir, name, Vec::new())
            });
        }
        for (old, new) in [
            ("f", "hard"),
            ("f", "g"),
            ("a", "dirlink"),
            ("no", "no2"),
            ("s", "s2"),
        ] {
            self.step(&format!("link {old} {new}"), |dir| {
                rustix::fs::linkat(&dir, old, &dir, new, AtFlags::empty())
            });
        }
        let nodes = [
            ("fifo", FileType::Fifo, 0),
            ("sock", FileType::Socket, 0),
            ("chr", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            (
                "blk",
                FileType::BlockDevice,
                rustix::fs::makedev(259, 70000),
            ),
            ("reg", FileType::RegularFile, 0),
            ("f", FileType::Fifo, 0),
        ];
        for (name, kind, device) in nodes {
            self.step(&format!("mknod {name}"), |dir| {
                rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o660), device)
            });
        }
    }

    fn rename(&mut self, old: &str, new: &str, flags: RenameFlags) {
        self.step(&format!("rename {old} {new} {flags:?}"), |dir| {
            rustix::fs::renameat_with(&dir, old, &dir, new, flags)
        });
    }

    fn renaming(&mut self) {
        let none = RenameFlags::empty();
        let cases = [
            ("h", "h2", none),
            ("absent", "z", none),
            ("g", "h2", none),
            ("h2", "f", RenameFlags::NOREPLACE),
            ("h2", "h3", RenameFlags::NOREPLACE),
            ("h3", "a", RenameFlags::EXCHANGE),
            ("h3", "absent", RenameFlags::EXCHANGE),
            ("f", "hard", none),
            ("h3", "h3/deeper", none),
            ("d", "full", none),
            ("d", "e", none),
            ("reg", "e", none),
            ("e", "reg", none),
            ("f", "whited", RenameFlags::WHITEOUT),
            ("f", "f2", RenameFlags::NOREPLACE | RenameFlags::EXCHANGE),
        ];
        for (old, new, flags) in cases {
            self.rename(old, new, flags);
        }
    }

    fn with_file(&mut self, what: &str, step: impl FnOnce(OwnedFd) -> Result<()>) {
        self.step(what, |dir| {
            step(rustix::fs::openat(
                dir,
                "whited",
                OFlags::RDWR,
                Mode::empty(),
            )?)
        });
    }

    fn changing(&mut self) {
        for mode in [0o7777, 0, 0o4755] {
            self.with_file("fchmod", |fd| {
                rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))
            });
        }
        self.with_file("fchown", |fd| {
            rustix::fs::fchown(fd, Some(Uid::from_raw(12)), Some(Gid::from_raw(34)))
        });
        self.step("lchown of a link", |dir| {
            let group = Some(Gid::from_raw(5));
            rustix::fs::chownat(dir, "s", None, group, AtFlags::SYMLINK_NOFOLLOW)
        });
        for size in [10_000, 3, 70_000] {
            self.with_file("ftruncate", |fd| rustix::fs::ftruncate(fd, size));
        }
        self.with_file("pwrite", |fd| {
            rustix::io::pwrite(fd, b"data", 65_536).map(drop)
        });
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.with_file("fallocate", |fd| {
            rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, 100_000)
        });
        self.with_file("punch", |fd| rustix::fs::fallocate(fd, punch, 0, 8192));
        self.with_file("punch nothing", |fd| rustix::fs::fallocate(fd, punch, 0, 0));
        // Before 1970 with a fraction, now-ish, and after 2106.
        for (seconds, nanoseconds) in [(-2, 800_000_000), (1_700_000_000, 1), (5_000_000_000, 7)] {
            for name in ["whited", "s", "full", "fifo"] {
                self.step(&format!("utimensat {name} {seconds}"), |dir| {
                    let time = Timespec {
                        tv_sec: seconds,
                        tv_nsec: nanoseconds,
                    };
                    let times = Timestamps {
                        last_access: time,
                        last_modification: time,
                    };
                    rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
                    let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    Ok((stat.st_mtime, stat.st_mtime_nsec))
                });
            }
        }
        self.step("truncate a directory", |dir| {
            rustix::fs::openat(dir, "full", OFlags::WRONLY | OFlags::TRUNC, Mode::empty()).map(drop)
        });
        self.open("hard", OFlags::WRONLY | OFlags::TRUNC);
        self.step("names and blocks", |dir| {
            let vfs = rustix::fs::fstatvfs(dir)?;
            Ok((vfs.f_bsize, vfs.f_frsize, vfs.f_namemax, vfs.f_blocks))
        });
    }

    fn removing(&mut self) {
        let remove_dir = AtFlags::REMOVEDIR;
        let cases = [
            ("full", remove_dir),
            ("whited", remove_dir),
            ("full", AtFlags::empty()),
            ("absent", AtFlags::empty()),
            ("absent", remove_dir),
            ("dangling", AtFlags::empty()),
            ("e", remove_dir),
            ("e", remove_dir),
        ];
        for (name, flags) in cases {
            self.step(&format!("unlink {name} {flags:?}"), |dir| {
                rustix::fs::unlinkat(dir, name, flags)
            });
        }
    }
}

/// Every path below `dir` with all that stat shows and that does not depend on when or
/// where it was made.
fn tree(dir: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut shown = BTreeMap::new();
    walk(dir, dir, &mut shown);
    shown
}

fn walk(root: &Path, path: &Path, shown: &mut BTreeMap<Vec<u8>, String>) {
    let stat = rustix::fs::lstat(path).unwrap();
    let kind = FileType::from_raw_mode(stat.st_mode);
    let content = match kind {
        FileType::RegularFile => fs::read(path).unwrap(),
        FileType::Symlink => fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
        _ => Vec::new(),
    };
    let name = path
        .strip_prefix(root)
        .unwrap()
        .as_os_str()
        .as_bytes()
        .to_vec();
    shown.insert(name, show(&stat, &content));
    if kind == FileType::Directory {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let native = rustix::fs::lstat(entry.path()).unwrap().st_ino;
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), native, "d_ino");
            walk(root, &entry.path(), shown);
        }
    }
}

fn show(stat: &Stat, content: &[u8]) -> String {
    // Times of the order of now differ; those that were set do not.
    let old_time = (stat.st_mtime < 1_600_000_000 || stat.st_mtime > 4_000_000_000)
        .then_some((stat.st_mtime, stat.st_mtime_nsec));
    let sum = content.iter().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(*byte))
    });
    format!(
        "mode {:o} nlink {} owner {}:{} size {} blocks {} blksize {} rdev {} time {old_time:?} sum {sum:x}",
        stat.st_mode,
        stat.st_nlink,
        stat.st_uid,
        stat.st_gid,
        stat.st_size,
        stat.st_blocks,
        stat.st_blksize,
        stat.st_rdev,
    )
}

#[test]
fn inode_numbers_are_those_of_the_source() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.source().join("f"), "").unwrap();
    let server = sandbox.serve(&[]);
    for name in ["", "f"] {
        let number = |dir: &Path| rustix::fs::stat(dir.join(name)).unwrap().st_ino;
        let (mount, source) = (sandbox.mountpoint(), sandbox.source());
        assert_eq!(number(&mount), number(&source), "{name:?}");
    }
    server.unmount();
}

#[test]
fn link_counts_follow_at_once() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let dir = sandbox.mountpoint();
    let links = |name: &str| rustix::fs::stat(dir.join(name)).map(|stat| stat.st_nlink);
    fs::write(dir.join("a"), "a").unwrap();
    fs::write(dir.join("b"), "b").unwrap();
    assert_eq!(links("a"), Ok(1));
    fs::hard_link(dir.join("a"), dir.join("c")).unwrap();
    assert_eq!((links("a"), links("c")), (Ok(2), Ok(2)));
    fs::rename(dir.join("b"), dir.join("c")).unwrap();
    assert_eq!(
        (links("a"), links("b"), links("c")),
        (Ok(1), Err(Errno::NOENT), Ok(1))
    );
    fs::hard_link(dir.join("a"), dir.join("d")).unwrap();
    fs::remove_file(dir.join("a")).unwrap();
    assert_eq!((links("a"), links("d")), (Err(Errno::NOENT), Ok(1)));
    let before = links("").unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    assert_eq!(links("").unwrap(), before + 1);
    fs::remove_dir(dir.join("sub")).unwrap();
    assert_eq!(links("").unwrap(), before);
    server.unmount();
}

#[test]
fn names_are_bytes() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    // 255 bytes, every value but NUL and the slash among them, twice not UTF-8.
    let mut name: Vec<u8> = (1..=255_u8).filter(|byte| *byte != b'/').collect();
    name.push(0xff);
    assert_eq!(name.len(), 255);
    let name = OsStr::from_bytes(&name);
    fs::write(sandbox.mountpoint().join(name), "content").unwrap();
    assert_eq!(fs::read(sandbox.source().join(name)).unwrap(), b"content");
    let listed: Vec<_> = fs::read_dir(sandbox.mountpoint())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(listed, [name]);
    let open = rustix::fs::openat(
        CWD,
        sandbox.mountpoint().join(name),
        OFlags::RDWR,
        Mode::empty(),
    );
    open.unwrap();
    fs::remove_file(sandbox.mountpoint().join(name)).unwrap();
    server.unmount();
    assert_eq!(fs::read_dir(sandbox.source()).unwrap().count(), 0);
}
