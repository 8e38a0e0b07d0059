//! Node identity: many inodes with few descriptors, inodes without a name, and inode
//! numbers that are given to another file behind the mount's back.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::harness::{Sandbox, Server, run_ok, shell};

/// The server's cache, and room for what it needs besides.
const DESCRIPTORS: usize = 4096 + 100;

/// Directories that [`plant`] makes.
const PARTS: usize = 30;

/// Makes `count` files in [`PARTS`] directories; each holds its number.
fn plant(dir: &Path, count: usize) -> Vec<PathBuf> {
    for part in 0..PARTS {
        fs::create_dir(dir.join(part.to_string())).unwrap();
    }
    let name = |number: usize| PathBuf::from(format!("{}/{number}", number % PARTS));
    let files: Vec<_> = (0..count).map(name).collect();
    for (number, file) in files.iter().enumerate() {
        fs::write(dir.join(file), number.to_string()).unwrap();
    }
    files
}

/// Looks every name up and asks every inode for its extended attributes, for which the
/// server needs a descriptor of each.
fn walk(dir: &Path) -> usize {
    let dir = dir.to_str().unwrap();
    let found = run_ok("findutils", &["find", dir, "-type", "f"]);
    let has_none = |name: &&str| rustix::fs::llistxattr(*name, &mut [0_u8; 0]) == Ok(0);
    found.lines().filter(has_none).count()
}

fn open_descriptors(server: &Server) -> usize {
    fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .count()
}

fn hold(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap()
}

/// Opens and reads what a path descriptor holds.
fn read_held(held: &OwnedFd) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(format!("/proc/self/fd/{}", held.as_raw_fd()))?.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_large_tree_needs_few_descriptors() {
    const COUNT: usize = 20_000;
    let sandbox = Sandbox::new();
    let files = plant(&sandbox.source(), COUNT);
    let server = sandbox.serve_quietly();
    let before = open_descriptors(&server);
    assert_eq!(walk(&sandbox.mountpoint()), COUNT);
    let after = open_descriptors(&server);
    // More than before, or the tree is not what the descriptors are for.
    assert!(
        (before + 1000..DESCRIPTORS).contains(&after),
        "{after} are open"
    );
    // In an order that has nothing to do with the cache's: 7919 is prime to the count.
    for step in 0..COUNT {
        let number = step * 7919 % COUNT;
        let content = fs::read_to_string(sandbox.mountpoint().join(&files[number])).unwrap();
        assert_eq!(content, number.to_string());
    }
    let after = open_descriptors(&server);
    assert!(after < DESCRIPTORS, "{after} are open");
    server.unmount();
}

#[test]
fn inodes_without_a_name_outlive_a_walk_through_many_others() {
    const COUNT: usize = 10_000;
    let sandbox = Sandbox::new();
    plant(&sandbox.source(), COUNT);
    let server = sandbox.serve_quietly();
    let mount = sandbox.mountpoint();
    let (unlinked, replaced) = (mount.join("unlinked"), mount.join("replaced"));
    fs::write(&unlinked, "unlinked").unwrap();
    fs::write(&replaced, "replaced").unwrap();
    fs::write(mount.join("new"), "new").unwrap();
    let held = [hold(&unlinked), hold(&replaced)];
    fs::remove_file(&unlinked).unwrap();
    fs::rename(mount.join("new"), &replaced).unwrap();
    assert_eq!(walk(&mount), COUNT + 1);
    assert_eq!(read_held(&held[0]).unwrap(), "unlinked");
    assert_eq!(read_held(&held[1]).unwrap(), "replaced");
    assert_eq!(fs::read_to_string(&replaced).unwrap(), "new");
    // A shell in a directory that is no more: it has no names, and takes none.
    shell(
        &mount,
        "mkdir gone; cd gone; rmdir ../gone; \
         find .. -type f -size -2 > /dev/null; \
         test \"$(stat --format=%h .)\" -eq 0; \
         test -z \"$(ls -A .)\"; \
         if touch new 2> /dev/null; then exit 1; fi",
    );
    let pinned = held.map(|fd| rustix::fs::fstat(&fd).unwrap().st_nlink);
    assert_eq!(pinned, [0, 0]);
    server.unmount();
}

/// What the holder of a file reads, and the reader of its successor by number, when the
/// number was given away behind the mount's back.
fn recycle(arguments: &[&str]) -> [std::io::Result<String>; 3] {
    let sandbox = Sandbox::new();
    let image = sandbox.path("image");
    let (image, source) = (image.to_str().unwrap(), sandbox.source());
    run_ok("coreutils", &["truncate", "--size=64M", image]);
    run_ok("e2fsprogs", &["mkfs.ext4", "-q", "-N", "16000", image]);
    run_ok(
        "mount",
        &["mount", "-o", "loop", image, source.to_str().unwrap()],
    );
    // Enough for the hand of the cache to come around twice.
    plant(&source, 12_000);
    let server = sandbox.serve(arguments);
    fs::write(source.join("old"), "old").unwrap();
    let number = fs::metadata(source.join("old")).unwrap().ino();
    let held = hold(&sandbox.mountpoint().join("old"));
    assert_eq!(read_held(&held).unwrap(), "old");
    // Evicts the descriptor, which would keep the number. The file itself must not be
    // among those that are used: the walk of all names may come to it last.
    for part in 0..PARTS {
        walk(&sandbox.mountpoint().join(part.to_string()));
    }
    fs::remove_file(source.join("old")).unwrap();
    let successor = (0..1000)
        .map(|attempt| format!("new-{attempt}"))
        .find(|name| {
            fs::write(source.join(name), "new").unwrap();
            fs::metadata(source.join(name)).unwrap().ino() == number
        });
    let successor = successor.expect("ext4 gives the lowest free number");
    let before = read_held(&held);
    let of_successor = fs::read_to_string(sandbox.mountpoint().join(successor));
    let after = read_held(&held);
    drop((held, server));
    [before, of_successor, after]
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn the_holder_of_a_removed_file_never_gets_its_successor_by_number() {
    let [before, of_successor, after] = recycle(&[]);
    assert_eq!(errno(before), Some(Errno::STALE));
    assert_eq!(of_successor.unwrap(), "new");
    // By now the kernel knows by the generation that the number is another file, and
    // answers for the old one itself (`fuse_make_bad` in fs/fuse/fuse_i.h).
    assert_eq!(errno(after), Some(Errno::IO));
}

#[cfg(feature = "mutants")]
#[test]
fn a_stale_generation_is_caught() {
    let [_, _, after] = recycle(&["--mutant", "stale-generation"]);
    assert_eq!(
        after.unwrap(),
        "new",
        "the mutant gives the successor's bytes"
    );
}

/// Prints how many descriptors and how much memory the server has after that.
#[test]
#[ignore = "makes a million files, which takes minutes"]
fn a_million_files_are_walked_in_bounded_memory() {
    const COUNT: usize = 1_000_000;
    let sandbox = Sandbox::new();
    plant(&sandbox.source(), COUNT);
    let server = sandbox.serve_quietly();
    let mut stack = vec![sandbox.mountpoint()];
    let mut files = 0;
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                stack.push(path);
            } else {
                files += 1;
            }
        }
    }
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let resident = |key| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let open = open_descriptors(&server);
    println!(
        "{files} files: {open} descriptors, {} KiB resident, {} KiB at most",
        resident("VmRSS:"),
        resident("VmHWM:")
    );
    assert_eq!(files, COUNT);
    assert!(open < DESCRIPTORS, "{open} are open");
    assert!(resident("VmHWM:") < 128 * 1024);
    server.unmount();
}
