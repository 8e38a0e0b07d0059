//! What other users may and may not do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use anyhow::Result;
use rustix::fs::{Access, AtFlags, CWD, Mode, accessat};
use rustix::io::Errno;
use rustix::process::umask;

use super::Line;
use super::scene::{Scene, code};
use crate::op::{GROUP, User};

pub(super) const CHECKS: &[Line] = &[
    (
        "permissions-of-others",
        "Modes decide for another user what they decide on the plain directory.",
        others,
    ),
    (
        "supplementary-groups",
        "A supplementary group opens what it should, and gives new files to it.",
        groups,
    ),
    (
        "sticky-directory",
        "In a sticky directory only owners remove and rename.",
        sticky,
    ),
    (
        "umask",
        "Files, directories and nodes are made with the caller's umask and owner.",
        created,
    ),
    (
        "set-group-id-directory",
        "What is made in a set-group-ID directory has its group; directories inherit the bit.",
        set_group_id,
    ),
    (
        "access",
        "access(2) answers for the real user, also for execution by root.",
        access,
    ),
    (
        "permission-at-open",
        "Permissions count when a file is opened, not when it is used.",
        at_open,
    ),
    (
        "chmod-by-others",
        "Only the owner changes the mode, and loses set-group-ID outside the group.",
        chmod,
    ),
];

fn others(scene: &Scene) -> Result<()> {
    for mode in [0o600, 0o640, 0o644, 0o666, 0o622, 0o000] {
        let name = format!("f{mode:o}");
        drop(scene.file(&name, b"contents")?);
        fs::set_permissions(scene.path(&name), fs::Permissions::from_mode(mode))?;
        let path = scene.path(&name);
        let read = scene.as_user(User::Alice, || code(fs::read(&path)))?;
        scene.expect(format!("read {mode:o}"), read.is_ok(), mode & 4 != 0);
        let write = scene.as_user(User::Alice, || {
            code(fs::OpenOptions::new().write(true).open(&path))
        })?;
        scene.expect(format!("write {mode:o}"), write.is_ok(), mode & 2 != 0);
        scene.see(
            format!("truncate {mode:o}"),
            scene.as_user(User::Alice, || crate::sys::truncate(&path, 1))?,
        );
        let owner = scene.as_user(User::Alice, || code(chown(&path, Some(1001), None)))?;
        scene.expect(format!("chown {mode:o}"), owner, Err::<(), _>(Errno::PERM));
    }
    for mode in [0o700, 0o711, 0o744, 0o755, 0o733, 0o777] {
        let name = format!("d{mode:o}");
        let path = scene.path(&name);
        fs::create_dir(&path)?;
        fs::write(path.join("f"), "x")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        let list = scene.as_user(User::Alice, || code(fs::read_dir(&path)))?;
        scene.expect(format!("list {mode:o}"), list.is_ok(), mode & 4 != 0);
        let search = scene.as_user(User::Alice, || code(fs::metadata(path.join("f"))))?;
        scene.expect(format!("search {mode:o}"), search.is_ok(), mode & 1 != 0);
        let make = scene.as_user(User::Alice, || code(fs::write(path.join("new"), "x")))?;
        scene.expect(format!("create in {mode:o}"), make.is_ok(), mode & 3 == 3);
        let remove = scene.as_user(User::Alice, || code(fs::remove_file(path.join("f"))))?;
        scene.expect(format!("remove in {mode:o}"), remove.is_ok(), mode & 3 == 3);
    }
    Ok(())
}

fn groups(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"for the group")?);
    let path = scene.path("f");
    chown(&path, None, Some(GROUP))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o060))?;
    let read = |user| scene.as_user(user, || code(fs::read(&path)));
    scene.expect("alice", read(User::Alice)?, Err::<(), _>(Errno::ACCESS));
    scene.expect("bob", read(User::Bob)?, Ok::<_, Errno>(()));
    fs::create_dir(scene.path("d"))?;
    chown(scene.path("d"), None, Some(GROUP))?;
    fs::set_permissions(scene.path("d"), fs::Permissions::from_mode(0o2770))?;
    let make =
        |user, name: &str| scene.as_user(user, || code(fs::write(scene.path("d").join(name), "x")));
    scene.expect(
        "alice creates",
        make(User::Alice, "a")?,
        Err::<(), _>(Errno::ACCESS),
    );
    scene.expect("bob creates", make(User::Bob, "b")?, Ok::<_, Errno>(()));
    scene.expect("its group", fs::metadata(scene.path("d/b"))?.gid(), GROUP);
    // An owner may give a file to a group of theirs, and keeps set-group-ID then.
    let mine = scene.path("d/b");
    let kept = scene.as_user(User::Bob, || {
        fs::set_permissions(&mine, fs::Permissions::from_mode(0o2755))
            .and_then(|()| chown(&mine, None, Some(1002)))
            .and_then(|()| chown(&mine, None, Some(GROUP)))
    })?;
    scene.expect("chgrp to own groups", code(kept), Ok::<_, Errno>(()));
    let foreign = scene.as_user(User::Bob, || code(chown(&mine, None, Some(1001))))?;
    scene.expect(
        "chgrp to a foreign group",
        foreign,
        Err::<(), _>(Errno::PERM),
    );
    scene.see("mode", scene.mode("d/b"));
    Ok(())
}

fn sticky(scene: &Scene) -> Result<()> {
    let dir = scene.path("d");
    fs::create_dir(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777))?;
    fs::write(dir.join("roots"), "x")?;
    scene.as_user(User::Bob, || fs::write(dir.join("bobs"), "x"))??;
    let alice =
        |action: &dyn Fn() -> std::io::Result<()>| scene.as_user(User::Alice, || code(action()));
    let (perm, done) = (Err::<(), _>(Errno::PERM), Ok::<(), Errno>(()));
    scene.expect("create", alice(&|| fs::write(dir.join("own"), "x"))?, done);
    scene.expect(
        "remove root's",
        alice(&|| fs::remove_file(dir.join("roots")))?,
        perm,
    );
    scene.expect(
        "remove bob's",
        alice(&|| fs::remove_file(dir.join("bobs")))?,
        perm,
    );
    scene.expect(
        "rename bob's",
        alice(&|| fs::rename(dir.join("bobs"), dir.join("new")))?,
        perm,
    );
    scene.expect(
        "replace bob's",
        alice(&|| fs::rename(dir.join("own"), dir.join("bobs")))?,
        perm,
    );
    scene.expect(
        "rename own",
        alice(&|| fs::rename(dir.join("own"), dir.join("mine")))?,
        done,
    );
    scene.expect(
        "remove own",
        alice(&|| fs::remove_file(dir.join("mine")))?,
        done,
    );
    chown(&dir, Some(1001), None)?;
    scene.expect(
        "as the directory's owner",
        alice(&|| fs::remove_file(dir.join("bobs")))?,
        done,
    );
    Ok(())
}

fn created(scene: &Scene) -> Result<()> {
    for mask in [0, 0o022, 0o077, 0o777] {
        let name = |kind: &str| scene.path(format!("{kind}{mask:o}"));
        umask(Mode::from_raw_mode(mask));
        scene.as_user(User::Alice, || -> Result<()> {
            fs::write(name("file"), "x")?;
            fs::create_dir(name("dir"))?;
            rustix::fs::mkfifoat(CWD, name("fifo"), Mode::from_raw_mode(0o666))?;
            std::os::unix::fs::symlink("x", name("symlink"))?;
            Ok(())
        })??;
        umask(Mode::from_raw_mode(0o022));
        for kind in ["file", "dir", "fifo", "symlink"] {
            let stat = scene.stat(name(kind))?;
            scene.expect(
                format!("owner of {kind}, {mask:o}"),
                (stat.user, stat.group),
                (1001, 1001),
            );
            scene.see(
                format!("mode of {kind}, {mask:o}"),
                format!("{:o}", stat.mode),
            );
        }
        scene.expect(
            format!("file, {mask:o}"),
            scene.mode(name("file"))?,
            format!("{:04o}", 0o666 & !mask),
        );
    }
    Ok(())
}

fn set_group_id(scene: &Scene) -> Result<()> {
    let dir = scene.path("d");
    fs::create_dir(&dir)?;
    chown(&dir, None, Some(GROUP))?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o2777))?;
    scene.as_user(User::Alice, || -> Result<()> {
        fs::write(dir.join("f"), "x")?;
        fs::create_dir(dir.join("sub"))?;
        std::os::unix::fs::symlink("x", dir.join("s"))?;
        Ok(())
    })??;
    for name in ["f", "sub", "s"] {
        let stat = scene.stat(format!("d/{name}"))?;
        scene.expect(
            format!("owner of {name}"),
            (stat.user, stat.group),
            (1001, GROUP),
        );
        scene.see(format!("mode of {name}"), format!("{:o}", stat.mode));
    }
    // Executable and outside the group: the bit must not be had by creating.
    let made = scene.as_user(User::Alice, || {
        rustix::fs::open(
            dir.join("x"),
            rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
            Mode::from_raw_mode(0o2775),
        )
    })?;
    scene.see("create with set-group-ID", made.map(drop));
    scene.see("its mode", scene.mode("d/x"));
    Ok(())
}

fn access(scene: &Scene) -> Result<()> {
    for mode in [0o600, 0o644, 0o755, 0o711, 0o000] {
        let name = format!("f{mode:o}");
        drop(scene.file(&name, b"")?);
        fs::set_permissions(scene.path(&name), fs::Permissions::from_mode(mode))?;
        for (label, wanted) in [
            ("exists", Access::EXISTS),
            ("read", Access::READ_OK),
            ("write", Access::WRITE_OK),
            ("execute", Access::EXEC_OK),
        ] {
            let ask = || accessat(CWD, scene.path(&name), wanted, AtFlags::empty());
            scene.see(format!("{label} {mode:o} by root"), ask());
            scene.see(
                format!("{label} {mode:o} by alice"),
                scene.as_user(User::Alice, ask)?,
            );
        }
    }
    Ok(())
}

fn at_open(scene: &Scene) -> Result<()> {
    use std::os::unix::fs::FileExt;
    drop(scene.file("f", b"contents")?);
    let open = scene.as_user(User::Alice, || scene.open("f", 0))??;
    fs::set_permissions(scene.path("f"), fs::Permissions::from_mode(0o600))?;
    let again = scene.as_user(User::Alice, || scene.open("f", 0).map(drop))?;
    scene.expect("opened again", again, Err::<(), _>(Errno::ACCESS));
    let mut bytes = [0; 8];
    let read = scene.as_user(User::Alice, || {
        open.read_at(&mut bytes, 0).map_err(|error| error.kind())
    })?;
    scene.expect("read", read, Ok::<_, ()>(8));
    let write = scene.as_user(User::Alice, || code(open.write_all_at(b"changed", 0)))?;
    scene.expect("write", write, Ok::<_, Errno>(()));
    let size = scene.as_user(User::Alice, || code(open.set_len(3)))?;
    scene.expect("ftruncate", size, Ok::<_, Errno>(()));
    let mode = scene.as_user(User::Alice, || {
        code(open.set_permissions(fs::Permissions::from_mode(0o777)))
    })?;
    scene.expect("fchmod", mode, Err::<(), _>(Errno::PERM));
    Ok(())
}

fn chmod(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"")?);
    let path = scene.path("f");
    let set = |user, mode| {
        scene.as_user(user, || {
            code(fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
        })
    };
    scene.expect(
        "by another",
        set(User::Alice, 0o777)?,
        Err::<(), _>(Errno::PERM),
    );
    chown(&path, Some(1001), Some(GROUP))?;
    scene.expect(
        "by the owner",
        set(User::Alice, 0o6755)?,
        Ok::<_, Errno>(()),
    );
    scene.expect("outside the group", scene.mode("f")?, "4755");
    chown(&path, Some(1002), Some(GROUP))?;
    scene.expect("by a member", set(User::Bob, 0o6755)?, Ok::<_, Errno>(()));
    scene.expect("inside the group", scene.mode("f")?, "6755");
    Ok(())
}
