//! The operations without a kernel: what only the server can get wrong.

use std::ffi::OsStr;
use std::path::Path;

use plugpull_fuse::SetTime;
use rustix::fs::fstat;

use super::*;
use crate::Caller;

fn mounted(dir: &Path) -> Passthrough {
    Passthrough::new(dir, Settings::default()).unwrap()
}

fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}

fn node(entry: &Entry) -> NodeId {
    entry.node
}

#[test]
fn a_name_that_walks_is_refused_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let root = NodeId::ROOT;
    let link = fs
        .symlink(Caller::ROOT, root, os("l"), Path::new("/"))
        .unwrap();
    for bad in ["", ".", "..", "a/b", "../x", "/etc/passwd"] {
        let bad = os(bad);
        let caller = Caller::ROOT;
        assert_eq!(fs.lookup(root, bad).unwrap_err(), Errno::INVAL);
        assert_eq!(
            fs.mkdir(caller, root, bad, 0o755).unwrap_err(),
            Errno::INVAL
        );
        assert_eq!(
            fs.create(caller, root, bad, 0o644, 0, &NoBacking)
                .unwrap_err(),
            Errno::INVAL
        );
        assert_eq!(fs.link(node(&link), root, bad).unwrap_err(), Errno::INVAL);
        assert_eq!(fs.unlink(root, bad).unwrap_err(), Errno::INVAL);
        let rename = fs.rename(caller, (root, os("l")), (root, bad), 0);
        assert_eq!(rename.unwrap_err(), Errno::INVAL);
    }
}

#[test]
fn a_symbolic_link_is_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let root = NodeId::ROOT;
    std::os::unix::fs::symlink("/etc", dir.path().join("l")).unwrap();
    let link = fs.lookup(root, os("l")).unwrap();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(
        fs.lookup(node(&link), os("passwd")).unwrap_err(),
        Errno::NOTDIR
    );
    let opened = fs.open(node(&link), 0, None, &NoBacking);
    assert_eq!(opened.unwrap_err(), Errno::NXIO);
    assert_eq!(fs.readlink(node(&link)).unwrap(), b"/etc");
    // A hard link of it is another name of the link, not of its target.
    let second = fs.link(node(&link), root, os("m")).unwrap();
    assert_eq!((second.attr.ino, second.attr.nlink), (link.attr.ino, 2));
}

#[test]
fn a_fifo_is_not_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let mode = 0o644 | libc::S_IFIFO;
    let fifo = fs
        .mknod(Caller::ROOT, NodeId::ROOT, os("p"), mode, 0)
        .unwrap();
    let opened = fs.open(node(&fifo), libc::O_RDONLY, None, &NoBacking);
    assert_eq!(opened.unwrap_err(), Errno::NXIO);
}

#[test]
fn a_mount_below_the_source_is_refused() {
    // `/proc` is a mount point of the host's root.
    let fs = mounted(Path::new("/"));
    assert_eq!(
        fs.lookup(NodeId::ROOT, os("proc")).unwrap_err(),
        Errno::XDEV
    );
}

#[test]
fn append_does_not_reach_the_lower_file() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let flags = libc::O_RDWR | libc::O_APPEND;
    let (entry, opened) = fs
        .create(
            Caller::ROOT,
            NodeId::ROOT,
            os("f"),
            0o644,
            flags,
            &NoBacking,
        )
        .unwrap();
    let handle = opened.handle;
    let how = |flags| WriteHow {
        flags,
        clears_set_id: None,
    };
    let written = |count| {
        Ok(Written {
            count,
            cleared_set_id: false,
        })
    };
    assert_eq!(
        fs.write(entry.node, handle, 0, b"abcdef", how(flags)),
        written(6)
    );
    // On an O_APPEND descriptor this would land at the end.
    let sync = flags | libc::O_SYNC;
    assert_eq!(
        fs.write(entry.node, handle, 1, b"XY", how(sync)),
        written(2)
    );
    let mut buffer = [0; 16];
    assert_eq!(fs.read(entry.node, handle, 0, &mut buffer, flags), Ok(6));
    assert_eq!(&buffer[..6], b"aXYdef");
    fs.release(node(&entry), handle, &NoBacking);
    let read = fs.read(entry.node, handle, 0, &mut buffer, flags);
    assert_eq!(read.unwrap_err(), Errno::BADF);
    assert_eq!(fs.fsync(handle, false).unwrap_err(), Errno::BADF);
    let reopened = fs.open(node(&entry), flags, None, &NoBacking).unwrap();
    assert_ne!(reopened.handle, handle);
}

/// What reading through a handle that was never given answers.
fn unknown_handle_is_refused() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    std::fs::write(dir.path().join("f"), "content").unwrap();
    let entry = fs.lookup(NodeId::ROOT, os("f")).unwrap();
    let unknown = crate::HandleId::from(77);
    let how = WriteHow::default();
    fs.read(entry.node, unknown, 0, &mut [0; 4], 0) == Err(Errno::BADF)
        && fs.write(entry.node, unknown, 0, b"x", how) == Err(Errno::BADF)
}

#[test]
fn an_unknown_handle_is_refused() {
    assert!(unknown_handle_is_refused());
}

#[cfg(feature = "mutants")]
#[test]
fn reopening_on_ebadf_is_caught() {
    crate::mutant::select(crate::mutant::Mutant::ReopenOnEbadf);
    assert!(!unknown_handle_is_refused());
}

#[test]
fn set_id_bits_go_when_the_writer_may_not_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let create = |name| {
        let created = fs.create(
            Caller::ROOT,
            NodeId::ROOT,
            os(name),
            0o6755,
            libc::O_RDWR,
            &NoBacking,
        );
        created.unwrap()
    };
    let somebody = Caller {
        uid: 1001,
        gid: 1001,
        ..Caller::ROOT
    };
    let cases = [("kept", None, 0o6755), ("killed", Some(somebody), 0o755)];
    for (name, clears_set_id, left) in cases {
        let (entry, opened) = create(name);
        let how = WriteHow {
            flags: libc::O_RDWR,
            clears_set_id,
        };
        let written = fs.write(entry.node, opened.handle, 0, b"x", how).unwrap();
        let cleared = clears_set_id.is_some();
        assert_eq!((written.count, written.cleared_set_id), (1, cleared));
        assert_eq!(fs.getattr(entry.node).unwrap().mode & 0o7777, left);
    }
}

#[test]
fn a_name_that_came_into_being_is_looked_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    std::fs::write(dir.path().join("f"), "theirs").unwrap();
    let create = |flags| {
        fs.create(
            Caller::ROOT,
            NodeId::ROOT,
            os("f"),
            0o644,
            flags,
            &NoBacking,
        )
    };
    assert_eq!(
        create(libc::O_RDWR | libc::O_TRUNC).unwrap_err(),
        Errno::STALE
    );
    assert_eq!(
        create(libc::O_RDWR | libc::O_EXCL).unwrap_err(),
        Errno::EXIST
    );
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"theirs");
}

#[test]
fn write_flags_are_those_of_the_request() {
    assert_eq!(WriteSync::from_request_flags(libc::O_RDWR), WriteSync::No);
    assert_eq!(
        WriteSync::from_request_flags(libc::O_DSYNC),
        WriteSync::Data
    );
    assert_eq!(WriteSync::from_request_flags(libc::O_SYNC), WriteSync::Full);
}

#[test]
fn a_name_that_cannot_be_looked_up_is_listed_all_the_same() {
    // `/proc` is a mount point of the host's root, and so nothing that can be entered.
    let fs = mounted(Path::new("/"));
    let handle = fs.opendir(NodeId::ROOT).unwrap();
    let mut found = None;
    let list = fs.readdirplus(NodeId::ROOT, handle, 0, 0, |listed, entry| {
        if listed.name == "proc" {
            found = Some(entry.is_some());
        }
        true
    });
    assert_eq!((list, found), (Ok(()), Some(false)));
}

#[test]
fn o_direct_is_that_of_each_request() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "").unwrap();
    let fs = mounted(dir.path());
    let entry = fs.lookup(NodeId::ROOT, os("f")).unwrap();
    let opened = fs.open(entry.node, libc::O_RDWR, None, &NoBacking).unwrap();
    let file = fs.handles.file(opened.handle).unwrap();
    for flags in [libc::O_RDWR, libc::O_RDWR | libc::O_DIRECT, libc::O_RDWR] {
        // fcntl(2) came before it; the request carries what it left.
        fs.read(entry.node, opened.handle, 0, &mut [], flags)
            .unwrap();
        let below = rustix::fs::fcntl_getfl(&*file).unwrap().bits();
        let direct = libc::O_DIRECT.cast_unsigned();
        assert_eq!(below & direct, flags.cast_unsigned() & direct);
    }
}

#[test]
fn o_noatime_is_that_of_each_listing() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let handle = fs.opendir(NodeId::ROOT).unwrap();
    let below = fs.handles.dir(handle).unwrap();
    for flags in [0, libc::O_NOATIME, 0] {
        fs.readdir(handle, flags, 0, |_| true).unwrap();
        let found = rustix::fs::fcntl_getfl(&*below).unwrap();
        let without = OFlags::from_bits_retain(libc::O_NOATIME.cast_unsigned());
        assert_eq!(found.contains(without), flags != 0);
    }
}

#[test]
fn no_id_is_not_an_owner() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let change = SetAttr {
        uid: Some(u32::MAX),
        ..SetAttr::default()
    };
    let answer = fs.setattr(Caller::ROOT, NodeId::ROOT, None, &change);
    assert_eq!(answer.unwrap_err(), Errno::INVAL);
}

#[test]
fn a_refused_name_comes_again_and_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let fs = mounted(dir.path());
    let handle = fs.opendir(NodeId::ROOT).unwrap();
    let (mut seen, mut offset) = (Vec::new(), 0);
    // Room for one name per call.
    for _ in 0..6 {
        let mut room = 1;
        fs.readdirplus(NodeId::ROOT, handle, 0, offset, |listed, _| {
            if room == 0 {
                return false;
            }
            room -= 1;
            offset = listed.next;
            seen.push(listed.name.clone());
            true
        })
        .unwrap();
    }
    seen.sort();
    assert_eq!(seen, [".", "..", "a", "b", "c"].map(OsStr::new));
    assert_eq!(fs.nodes.known(), (3, 3));
    for name in ["a", "b", "c"] {
        let entry = fs.lookup(NodeId::ROOT, os(name)).unwrap();
        fs.forget(node(&entry), 2);
    }
    assert_eq!(fs.nodes.known(), (0, 0));
}

#[test]
fn setattr_sets_owner_before_mode_and_times_last() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    std::fs::write(dir.path().join("f"), "0123456789").unwrap();
    let entry = fs.lookup(NodeId::ROOT, os("f")).unwrap();
    let change = SetAttr {
        mode: Some(0o4755),
        uid: Some(7),
        gid: Some(8),
        size: Some(4),
        mtime: SetTime::At {
            seconds: -2,
            nanoseconds: 500_000_000,
        },
        ..SetAttr::default()
    };
    let attr = fs
        .setattr(Caller::ROOT, node(&entry), None, &change)
        .unwrap();
    assert_eq!(
        (attr.uid, attr.gid, attr.mode, attr.size),
        (7, 8, 0o104_755, 4)
    );
    let stat = fstat(std::fs::File::open(dir.path().join("f")).unwrap()).unwrap();
    assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (-2, 500_000_000));
}

#[test]
fn the_root_keeps_its_own_number_in_getattr() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let native = fstat(std::fs::File::open(dir.path()).unwrap()).unwrap();
    assert_eq!(fs.getattr(NodeId::ROOT).unwrap().ino, native.st_ino);
    let unknown = NodeId::from(0xdead_beef);
    assert_eq!(fs.getattr(unknown).unwrap_err(), Errno::STALE);
}

#[test]
fn an_open_file_answers_for_its_inode() {
    let dir = tempfile::tempdir().unwrap();
    let fs = mounted(dir.path());
    let create = |name| {
        let flags = libc::O_WRONLY;
        let made = fs.create(
            Caller::ROOT,
            NodeId::ROOT,
            os(name),
            0o600,
            flags,
            &NoBacking,
        );
        made.unwrap()
    };
    let ((one, first), (other, _held)) = (create("one"), create("other"));
    fs.setxattr(node(&one), os("user.x"), b"one", 0, false)
        .unwrap();
    let again = fs.open(node(&one), libc::O_RDONLY, None, &NoBacking);
    let value = |entry: &Entry| fs.getxattr(node(entry), os("user.x"), 16);
    let asked = || {
        assert!(matches!(value(&one), Ok(XattrAnswer::Data(data)) if data == b"one"));
        assert!(matches!(value(&other), Err(Errno::NODATA)));
        assert_eq!(fs.getattr(node(&one)).unwrap().ino, one.attr.ino);
    };
    asked();
    // The one that came last goes, and then the other.
    fs.release(node(&one), again.unwrap().handle, &NoBacking);
    asked();
    fs.release(node(&one), first.handle, &NoBacking);
    asked();
}
