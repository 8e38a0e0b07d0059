//! What the mount does otherwise than the directory below it, as docs/semantics.md
//! says: each test shows the difference, so that it cannot go unnoticed when it ends.

use std::fs::{self, File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use rustix::fs::{
    FlockOperation, IFlags, OFlags, SeekFrom, fcntl_getfl, fcntl_setfl, flock, ioctl_ficlone,
    ioctl_getflags, ioctl_setflags, seek,
};
use rustix::io::Errno;

use crate::harness::{IO_MODES, Sandbox, run, run_ok};

/// The permission bits of a file that root has open when it becomes a set-id program,
/// after a write by root.
fn mode_after_roots_write(mode: &str) -> u32 {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&["--io", mode]);
    let path = sandbox.mountpoint().join("f");
    let file = File::create(&path).unwrap();
    file.write_all_at(b"before", 0).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
    file.write_all_at(b"after", 0).unwrap();
    drop(file);
    server.unmount();
    let left = fs::metadata(sandbox.source().join("f")).unwrap();
    left.permissions().mode() & 0o7777
}

#[test]
fn set_id_bits_given_to_an_open_file_fall_with_roots_write_in_passthrough_alone() {
    for mode in IO_MODES {
        let expected = if mode == "passthrough" { 0o755 } else { 0o6755 };
        let left = mode_after_roots_write(mode);
        assert_eq!(left, expected, "{mode}: {left:o}");
    }
}

/// In passthrough the kernel alone would write there. The first open is from a time
/// when the file was an ordinary one.
#[test]
fn a_set_id_file_that_is_open_already_is_opened_anew_to_its_rules() {
    for mode in IO_MODES {
        let sandbox = Sandbox::new();
        let server = sandbox.serve(&["--io", mode]);
        let path = sandbox.mountpoint().join("f");
        let first = File::create(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
        let second = File::options().write(true).open(&path).unwrap();
        let bits = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        second.write_all_at(b"by root", 0).unwrap();
        assert_eq!(bits(), 0o6777, "{mode}");
        let script = format!("printf x 1<> {}", path.display());
        let user = [
            "setpriv",
            "--reuid=1001",
            "--clear-groups",
            "sh",
            "-c",
            &script,
        ];
        run_ok("util-linux", &user);
        assert_eq!(bits(), 0o777, "{mode}");
        drop((first, second));
        server.unmount();
    }
}

#[test]
fn locks_stay_on_the_mount() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    fs::write(sandbox.source().join("f"), "").unwrap();
    let open = |dir: std::path::PathBuf| File::open(dir.join("f")).unwrap();
    let held = open(sandbox.mountpoint());
    flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
    let again = flock(
        open(sandbox.mountpoint()),
        FlockOperation::NonBlockingLockExclusive,
    );
    assert_eq!(again, Err(Errno::AGAIN));
    let below = flock(
        open(sandbox.source()),
        FlockOperation::NonBlockingLockExclusive,
    );
    assert_eq!(below, Ok(()), "the server takes no lock on the source");
    drop(held);
    server.unmount();
}

/// What ioctl(2) answers, asked by number from a program that has the call.
fn ioctl(file: &File, request: u32) -> Option<i32> {
    let script =
        format!("$! = 0; my $room = chr(0) x 256; ioctl(STDIN, {request}, $room); print int($!);");
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let line = format!("perl -e '{script}' < {path}");
    let output = run("perl", &["sh", "-c", &line]);
    String::from_utf8(output.stdout).unwrap().parse().ok()
}

#[test]
fn other_ioctls_are_refused() {
    const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
    const FIFREEZE: u32 = 0xc004_5877;
    const FITRIM: u32 = 0xc018_5879;
    const FS_IOC_FIEMAP: u32 = 0xc020_660b;
    const EXT4_IOC_MOVE_EXT: u32 = 0xc028_660f;
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let file = File::create(sandbox.mountpoint().join("f")).unwrap();
    // The control: a call that is passed on gets the answer of the filesystem below.
    let below = File::create(sandbox.source().join("below")).unwrap();
    assert_eq!(
        ioctl(&file, FS_IOC_GETFLAGS),
        ioctl(&below, FS_IOC_GETFLAGS)
    );
    for (request, errno) in [
        (FITRIM, Errno::NOTTY),
        (EXT4_IOC_MOVE_EXT, Errno::NOTTY),
        // These two the kernel answers itself, for a filesystem without them.
        (FS_IOC_FIEMAP, Errno::OPNOTSUPP),
        (FIFREEZE, Errno::OPNOTSUPP),
    ] {
        assert_eq!(
            ioctl(&file, request),
            Some(errno.raw_os_error()),
            "{request:#x}"
        );
    }
    drop(file);
    server.unmount();
}

#[test]
fn reflinks_are_refused() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    fs::write(sandbox.mountpoint().join("from"), "content").unwrap();
    let (from, to) = (
        File::open(sandbox.mountpoint().join("from")).unwrap(),
        File::create(sandbox.mountpoint().join("to")).unwrap(),
    );
    assert_eq!(ioctl_ficlone(&to, &from), Err(Errno::OPNOTSUPP));
    drop((from, to));
    server.unmount();
}

/// Where data begins (`None`: nowhere) and whether there are blocks, of a file that was
/// written and not synchronised, and then synchronised.
fn extent_of_new_data(mode: &str) -> [(Option<u64>, bool); 2] {
    let sandbox = Sandbox::new();
    // Without a cache of attributes: blocks may be as old as these.
    let server = sandbox.serve(&["--io", mode, "--cache", "none"]);
    let file = File::create(sandbox.mountpoint().join("f")).unwrap();
    file.write_all_at(&[1; 65_536], 0).unwrap();
    let look = || {
        let data = seek(&file, SeekFrom::Data(0));
        (data.ok(), file.metadata().unwrap().blocks() > 0)
    };
    let before = look();
    file.sync_data().unwrap();
    let after = look();
    drop(file);
    server.unmount();
    [before, after]
}

#[test]
fn data_that_write_back_holds_are_a_hole_without_blocks() {
    let there = (Some(0), true);
    for mode in IO_MODES {
        let before = if mode == "writeback" {
            (None, false)
        } else {
            there
        };
        assert_eq!(extent_of_new_data(mode), [before, there], "{mode}");
    }
}

#[test]
fn an_append_only_inode_is_one_below_alone() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let cleared = |dir: std::path::PathBuf| {
        let path = dir.join(dir.file_name().unwrap());
        let create = File::options().create(true).append(true).open(path);
        let file = create.unwrap();
        let flags = ioctl_getflags(&file).unwrap();
        ioctl_setflags(&file, flags | IFlags::APPEND).unwrap();
        file.write_all_at(b"one", 0).unwrap();
        let without = fcntl_getfl(&file).unwrap() - OFlags::APPEND;
        let cleared = fcntl_setfl(&file, without);
        ioctl_setflags(&file, flags).unwrap();
        cleared
    };
    assert_eq!(cleared(sandbox.native()), Err(Errno::PERM));
    assert_eq!(cleared(sandbox.mountpoint()), Ok(()));
    server.unmount();
}

#[test]
fn a_chown_that_names_nobody_clears_nothing() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let mode_after = |dir: std::path::PathBuf| {
        let path = dir.join("f");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
        std::os::unix::fs::chown(&path, None, None).unwrap();
        fs::metadata(&path).unwrap().mode() & 0o7777
    };
    assert_eq!(mode_after(sandbox.native()), 0o755);
    assert_eq!(mode_after(sandbox.mountpoint()), 0o6755);
    server.unmount();
}
