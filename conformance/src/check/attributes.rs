//! Attributes: times, birth, set-id bits, extended attributes, ACLs, inode flags.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};

use anyhow::Result;
use rustix::fs::{
    AtFlags, CWD, IFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags, fremovexattr,
    getxattr, ioctl_getflags, ioctl_setflags, lgetxattr, listxattr, lsetxattr, setxattr, utimensat,
};
use rustix::io::Errno;
use rustix::process::umask;

use super::Line;
use super::scene::{Scene, code};
use crate::client::Kernel;
use crate::op::{Acl, User};
use crate::outcome::When;
use crate::sys::truncate;
use crate::world::{acl_value, data};

pub(super) const CHECKS: &[Line] = &[
    (
        "times-before-1970",
        "Times before 1970 keep their nanoseconds, through names and descriptors.",
        before_1970,
    ),
    (
        "times-after-2106",
        "Times after 2038 and 2106 keep their nanoseconds; the filesystem's own limits hold.",
        after_2106,
    ),
    (
        "times-now-and-omit",
        "UTIME_NOW and UTIME_OMIT set and leave each time on its own; nanoseconds over a second are EINVAL.",
        now_and_omit,
    ),
    (
        "times-of-symlinks",
        "A symlink has times of its own.",
        of_symlinks,
    ),
    (
        "times-follow-writes",
        "A write sets the times of modification and change, a chmod that of change alone.",
        follow_writes,
    ),
    (
        "statx-birth-time",
        "statx(2) gives a birth time where the filesystem below has one.",
        birth_time,
    ),
    (
        "set-id-cleared-by-write",
        "A write by an ordinary user clears set-user-ID and set-group-ID.",
        cleared_by_write,
    ),
    (
        "set-id-cleared-by-truncate",
        "So does a truncation, by name, by descriptor and by O_TRUNC.",
        cleared_by_truncate,
    ),
    (
        "set-id-cleared-by-chown",
        "So does a change of owner, by root too.",
        cleared_by_chown,
    ),
    (
        "set-id-kept-for-root",
        "A write by root keeps them.",
        kept_for_root,
    ),
    (
        "xattrs",
        "Extended attributes of every namespace, with their flags, sizes and errors.",
        xattrs,
    ),
    (
        "acl-access",
        "An access ACL grants what it says, appears in the mode, and follows chmod.",
        acl_access,
    ),
    (
        "acl-default",
        "A default ACL is inherited, and then the umask does not count.",
        acl_default,
    ),
    (
        "inode-flags",
        "FS_IOC_GETFLAGS and FS_IOC_SETFLAGS show and set append-only and no-dump.",
        inode_flags,
    ),
];

fn set_times(
    scene: &Scene,
    name: &str,
    access: (i64, i64),
    modification: (i64, i64),
) -> Result<(), Errno> {
    let timespec = |(tv_sec, tv_nsec): (i64, i64)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: timespec(access),
        last_modification: timespec(modification),
    };
    utimensat(CWD, scene.path(name), &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn times(scene: &Scene, name: &str) -> Result<(When, When), Errno> {
    scene
        .stat(name)
        .map(|stat| (stat.access, stat.modification))
}

fn before_1970(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"")?;
    for (seconds, nanoseconds) in [
        (-1, 0),
        (-1, 999_999_999),
        (-1_000_000_000, 1),
        (-2_147_483_647, 5),
    ] {
        let time = (seconds, nanoseconds);
        set_times(scene, "f", time, (seconds + 1, nanoseconds))?;
        scene.expect(
            format!("{seconds}.{nanoseconds:09}"),
            times(scene, "f")?,
            (
                When::At(seconds, nanoseconds as u32),
                When::At(seconds + 1, nanoseconds as u32),
            ),
        );
    }
    let time = Timespec {
        tv_sec: -7,
        tv_nsec: 250_000_000,
    };
    rustix::fs::futimens(
        &file,
        &Timestamps {
            last_access: time,
            last_modification: time,
        },
    )?;
    scene.expect(
        "by descriptor",
        (file.metadata()?.mtime(), file.metadata()?.mtime_nsec()),
        (-7, 250_000_000),
    );
    // Where the filesystem's range ends, it clamps; ext4's does in 1901.
    for seconds in [-2_147_483_648, -3_000_000_000, i64::MIN] {
        scene.see(
            format!("set {seconds}"),
            set_times(scene, "f", (seconds, 3), (seconds, 3)),
        );
        scene.see(seconds, times(scene, "f")?);
    }
    Ok(())
}

fn after_2106(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"")?);
    for seconds in [2_147_483_648, 4_294_967_296, 5_000_000_000] {
        set_times(
            scene,
            "f",
            (seconds, 123_456_789),
            (seconds + 1, 999_999_999),
        )?;
        let expected = (
            When::At(seconds, 123_456_789),
            When::At(seconds + 1, 999_999_999),
        );
        scene.expect(seconds, times(scene, "f")?, expected);
    }
    for seconds in [20_000_000_000, 1 << 40, i64::MAX] {
        scene.see(
            format!("set {seconds}"),
            set_times(scene, "f", (seconds, 1), (seconds, 1)),
        );
        scene.see(seconds, times(scene, "f")?);
    }
    Ok(())
}

fn now_and_omit(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"")?);
    let old = (1_000_000_000, 7);
    let (then, now) = (When::At(1_000_000_000, 7), When::Now);
    set_times(scene, "f", old, old)?;
    set_times(scene, "f", (0, UTIME_OMIT), (0, UTIME_NOW))?;
    scene.expect("omit, now", times(scene, "f")?, (then, now));
    set_times(scene, "f", (0, UTIME_NOW), old)?;
    scene.expect("now, old", times(scene, "f")?, (now, then));
    set_times(scene, "f", old, (0, UTIME_OMIT))?;
    scene.expect("old, omit", times(scene, "f")?, (then, then));
    set_times(scene, "f", (0, UTIME_OMIT), (0, UTIME_OMIT))?;
    scene.expect("omit, omit", times(scene, "f")?, (then, then));
    let wrong = set_times(scene, "f", (0, 1_000_000_000), old);
    scene.expect("nanoseconds of a second", wrong, Err::<(), _>(Errno::INVAL));
    for (label, time) in [
        ("now by another", (0, UTIME_NOW)),
        ("a time by another", old),
    ] {
        let set = scene.as_user(User::Alice, || set_times(scene, "f", time, time))?;
        scene.see(label, set);
    }
    Ok(())
}

fn of_symlinks(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"")?);
    std::os::unix::fs::symlink("f", scene.path("s"))?;
    set_times(scene, "s", (-5, 5), (5_000_000_000, 6))?;
    scene.expect(
        "the symlink",
        times(scene, "s")?,
        (When::At(-5, 5), When::At(5_000_000_000, 6)),
    );
    scene.expect("the file", times(scene, "f")?, (When::Now, When::Now));
    Ok(())
}

fn follow_writes(scene: &Scene) -> Result<()> {
    let mut file = scene.file("f", b"")?;
    let old = (1_000_000_000, 7);
    set_times(scene, "f", old, old)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    scene.expect(
        "after chmod",
        times(scene, "f")?.1,
        When::At(1_000_000_000, 7),
    );
    file.write_all(b"x")?;
    scene.expect("after write", times(scene, "f")?.1, When::Now);
    set_times(scene, "f", old, old)?;
    file.set_len(1)?;
    scene.see("after ftruncate to the same size", times(scene, "f")?.1);
    for name in ["f", "empty"] {
        let length = match name {
            "f" => 1,
            _ => scene.file(name, b"")?.metadata()?.len(),
        };
        set_times(scene, name, old, old)?;
        truncate(scene.path(name), length)?;
        let label = format!("{name} after truncate to the same size");
        scene.see(&label, times(scene, name)?.1);
    }
    set_times(scene, "f", old, old)?;
    file.set_len(10)?;
    scene.expect("after ftruncate", times(scene, "f")?.1, When::Now);
    set_times(scene, "f", old, old)?;
    drop(file);
    scene.expect(
        "after close",
        times(scene, "f")?.1,
        When::At(1_000_000_000, 7),
    );
    Ok(())
}

fn birth_time(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"")?);
    fs::create_dir(scene.path("d"))?;
    fs::rename(scene.path("f"), scene.path("g"))?;
    for name in ["g", "d", "."] {
        let seen = scene.stat(name)?.birth;
        if Kernel::is_older_than(6, 6) {
            scene.limit("FUSE_STATX came with 6.6", name, seen, None::<When>);
        } else {
            scene.see(name, seen);
        }
    }
    Ok(())
}

const MODES: [u32; 5] = [0o4755, 0o2755, 0o6777, 0o2646, 0o6666];

/// A file of root with these bits, writable for all who try.
fn privileged(scene: &Scene, mode: u32) -> Result<String> {
    let name = format!("f{mode:o}");
    let file = scene.file(&name, b"contents")?;
    file.set_permissions(fs::Permissions::from_mode(mode | 0o002))?;
    Ok(name)
}

fn cleared_by_write(scene: &Scene) -> Result<()> {
    for mode in MODES {
        let name = privileged(scene, mode)?;
        let file = scene.as_user(User::Alice, || {
            fs::OpenOptions::new().write(true).open(scene.path(&name))
        })??;
        scene.expect(
            format!("{mode:o} after open"),
            scene.mode(&name)?,
            format!("{:04o}", mode | 2),
        );
        scene.as_user(User::Alice, || file.write_all_at(b"x", 0))??;
        scene.see(format!("{mode:o} after write"), scene.mode(&name));
        let seen = file.metadata()?.mode() & 0o4000;
        scene.expect(format!("{mode:o} set-user-ID by fstat"), seen, 0);
    }
    Ok(())
}

fn cleared_by_truncate(scene: &Scene) -> Result<()> {
    for (way, mode) in [
        ("truncate", 0o4755),
        ("ftruncate", 0o6755),
        ("O_TRUNC", 0o6777),
    ] {
        let name = privileged(scene, mode)?;
        let path = scene.path(&name);
        let done = scene.as_user(User::Alice, || match way {
            "truncate" => truncate(&path, 3),
            "ftruncate" => {
                let file = fs::OpenOptions::new().write(true).open(&path);
                let file = file.map_err(|error| super::scene::errno(&error))?;
                rustix::fs::ftruncate(&file, 3)
            }
            _ => fs::File::create(&path)
                .map(drop)
                .map_err(|error| super::scene::errno(&error)),
        })?;
        scene.expect(way, done, Ok::<(), Errno>(()));
        scene.expect(
            format!("mode after {way}"),
            scene.mode(&name)?,
            format!("{:04o}", mode & 0o777 | 2),
        );
    }
    Ok(())
}

fn cleared_by_chown(scene: &Scene) -> Result<()> {
    for mode in MODES {
        let name = privileged(scene, mode)?;
        chown(scene.path(&name), Some(1001), None)?;
        scene.see(format!("{mode:o} after chown"), scene.mode(&name));
        fs::set_permissions(scene.path(&name), fs::Permissions::from_mode(mode))?;
        let mine = scene.as_user(User::Alice, || chown(scene.path(&name), None, Some(1001)))?;
        scene.see(format!("{mode:o} chgrp by the owner"), code(mine));
        scene.see(format!("{mode:o} after chgrp"), scene.mode(&name));
    }
    fs::create_dir(scene.path("d"))?;
    fs::set_permissions(scene.path("d"), fs::Permissions::from_mode(0o6755))?;
    chown(scene.path("d"), Some(1001), Some(1001))?;
    scene.see("directories keep them", scene.mode("d"));
    Ok(())
}

fn kept_for_root(scene: &Scene) -> Result<()> {
    let name = privileged(scene, 0o6755)?;
    let file = scene.open(&name, 0)?;
    file.write_all_at(b"x", 0)?;
    file.set_len(3)?;
    scene.expect("mode", scene.mode(&name)?, "6757");
    Ok(())
}

fn xattrs(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"")?;
    let path = scene.path("f");
    let set = |name: &str, value: &[u8], flags| setxattr(&path, name, value, flags);
    let none = XattrFlags::empty();
    for name in ["user.one", "trusted.two", "security.three"] {
        scene.expect(
            format!("set {name}"),
            set(name, b"value", none),
            Ok::<_, Errno>(()),
        );
    }
    scene.expect(
        "CREATE",
        set("user.one", b"2", XattrFlags::CREATE),
        Err::<(), _>(Errno::EXIST),
    );
    scene.expect(
        "REPLACE",
        set("user.new", b"2", XattrFlags::REPLACE),
        Err::<(), _>(Errno::NODATA),
    );
    scene.see("unknown namespace", set("nonsense.a", b"", none));
    scene.see(
        "name of 256",
        set(&format!("user.{}", "n".repeat(251)), b"", none),
    );
    scene.see(
        "name of 255",
        set(&format!("user.{}", "n".repeat(250)), b"", none),
    );
    scene.expect(
        "value over 64 KiB",
        set("user.big", &data(65_537, 0), none),
        Err::<(), _>(Errno::TOOBIG),
    );
    scene.see("value of 64 KiB", set("user.big", &data(65_536, 0), none));
    scene.see("empty value", set("user.empty", b"", none));
    let mut small = [0; 3];
    scene.expect(
        "too little room",
        getxattr(&path, "user.one", &mut small[..]),
        Err::<usize, _>(Errno::RANGE),
    );
    scene.expect(
        "size",
        rustix::fs::getxattr_query(&path, "user.one"),
        Ok::<_, Errno>(5),
    );
    scene.see("size of the list", rustix::fs::listxattr_query(&path));
    let mut list = vec![0; 4096];
    let count = listxattr(&path, &mut list[..])?;
    let mut names: Vec<_> = list[..count].split(|byte| *byte == 0).collect();
    names.sort();
    scene.see("list", names);
    scene.expect(
        "remove",
        fremovexattr(&file, "user.one"),
        Ok::<_, Errno>(()),
    );
    scene.expect(
        "again",
        fremovexattr(&file, "user.one"),
        Err::<(), _>(Errno::NODATA),
    );
    std::os::unix::fs::symlink("f", scene.path("s"))?;
    scene.see(
        "user. on a symlink",
        lsetxattr(scene.path("s"), "user.a", b"x", none),
    );
    scene.see(
        "trusted. on a symlink",
        lsetxattr(scene.path("s"), "trusted.a", b"x", none),
    );
    let mut value = [0; 8];
    scene.see(
        "of the symlink",
        lgetxattr(scene.path("s"), "trusted.a", &mut value[..]),
    );
    let trusted = scene.as_user(User::Alice, || {
        getxattr(&path, "trusted.two", &mut [0; 8][..])
    })?;
    scene.expect(
        "trusted. by another",
        trusted,
        Err::<usize, _>(Errno::NODATA),
    );
    let denied = scene.as_user(User::Alice, || setxattr(&path, "trusted.two", b"x", none))?;
    scene.expect("set trusted. by another", denied, Err::<(), _>(Errno::PERM));
    Ok(())
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn acl(scene: &Scene, name: &str, attribute: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 1024];
    let count = getxattr(scene.path(name), attribute, &mut value[..])?;
    value.truncate(count);
    Ok(value)
}

fn acl_access(scene: &Scene) -> Result<()> {
    let none = XattrFlags::empty();
    drop(scene.file("f", b"contents")?);
    let path = scene.path("f");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let read = |user| scene.as_user(user, || code(fs::read(&path)));
    scene.expect(
        "alice before",
        read(User::Alice)?,
        Err::<(), _>(Errno::ACCESS),
    );
    setxattr(&path, ACCESS, &acl_value(Acl::AliceWrites), none)?;
    scene.expect("alice", read(User::Alice)?, Ok::<_, Errno>(()));
    scene.expect("bob", read(User::Bob)?, Err::<(), _>(Errno::ACCESS));
    scene.expect("the mask in the mode", scene.mode("f")?, "0670");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    scene.expect(
        "alice, masked",
        read(User::Alice)?,
        Err::<(), _>(Errno::ACCESS),
    );
    scene.see("ACL after chmod", acl(scene, "f", ACCESS));
    setxattr(&path, ACCESS, &acl_value(Acl::GroupReads), none)?;
    scene.expect("bob by his group", read(User::Bob)?, Ok::<_, Errno>(()));
    setxattr(&path, ACCESS, &acl_value(Acl::Minimal), none)?;
    scene.expect("a minimal ACL is a mode", scene.mode("f")?, "0640");
    scene.expect(
        "and no ACL",
        acl(scene, "f", ACCESS),
        Err::<Vec<u8>, _>(Errno::NODATA),
    );
    let invalid = setxattr(&path, ACCESS, &acl_value(Acl::Invalid), none);
    scene.expect("invalid", invalid, Err::<(), _>(Errno::INVAL));
    let foreign = scene.as_user(User::Alice, || {
        setxattr(&path, ACCESS, &acl_value(Acl::AliceWrites), none)
    })?;
    scene.expect("by another", foreign, Err::<(), _>(Errno::PERM));
    Ok(())
}

fn acl_default(scene: &Scene) -> Result<()> {
    let none = XattrFlags::empty();
    fs::create_dir(scene.path("d"))?;
    fs::set_permissions(scene.path("d"), fs::Permissions::from_mode(0o777))?;
    let plain = setxattr(scene.path("d"), DEFAULT, &acl_value(Acl::AliceWrites), none);
    scene.expect("set", plain, Ok::<_, Errno>(()));
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    fs::write(scene.path("d/f"), "")?;
    fs::create_dir(scene.path("d/sub"))?;
    rustix::fs::mkfifoat(
        CWD,
        scene.path("d/fifo"),
        rustix::fs::Mode::from_raw_mode(0o666),
    )?;
    std::os::unix::fs::symlink("f", scene.path("d/s"))?;
    fs::write(scene.path("beside"), "")?;
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    scene.expect(
        "without a default the umask counts",
        scene.mode("beside")?,
        "0600",
    );
    for name in ["d/f", "d/sub", "d/fifo", "d/s"] {
        scene.see(format!("mode of {name}"), scene.mode(name));
        scene.see(format!("ACL of {name}"), acl(scene, name, ACCESS));
        scene.see(format!("default of {name}"), acl(scene, name, DEFAULT));
    }
    let alice = scene.as_user(User::Alice, || code(fs::write(scene.path("d/f"), "x")))?;
    scene.expect("alice writes", alice, Ok::<_, Errno>(()));
    let on_file = setxattr(
        scene.path("d/f"),
        DEFAULT,
        &acl_value(Acl::AliceWrites),
        none,
    );
    scene.see("a default on a file", on_file);
    Ok(())
}

fn inode_flags(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"contents")?;
    let changeable = IFlags::APPEND | IFlags::NODUMP | IFlags::IMMUTABLE;
    let flags = |file: &fs::File| ioctl_getflags(file).map(|flags| flags & changeable);
    scene.see("at first", flags(&file));
    let before = ioctl_getflags(&file);
    let Ok(before) = before else { return Ok(()) };
    scene.see(
        "set no-dump",
        ioctl_setflags(&file, before | IFlags::NODUMP),
    );
    scene.see("no-dump", flags(&file));
    scene.see(
        "set append-only",
        ioctl_setflags(&file, before | IFlags::APPEND),
    );
    scene.see("append-only", flags(&file));
    scene.expect(
        "truncate",
        code(scene.open("f", libc::O_TRUNC).map_err(Into::into)),
        Err::<(), _>(Errno::PERM),
    );
    scene.expect(
        "unlink",
        code(fs::remove_file(scene.path("f"))),
        Err::<(), _>(Errno::PERM),
    );
    let append = scene.open("f", libc::O_APPEND).and_then(|mut file| {
        file.write_all(b"x")
            .map_err(|error| super::scene::errno(&error))
    });
    scene.expect("append", append, Ok::<_, Errno>(()));
    let denied = scene.as_user(User::Alice, || ioctl_setflags(&file, before))?;
    scene.see("by another", denied);
    ioctl_setflags(&file, before)?;
    let directory = fs::File::open(&scene.dir)?;
    scene.see("of a directory", flags(&directory));
    Ok(())
}
