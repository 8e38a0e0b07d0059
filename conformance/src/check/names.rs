//! Names: renames with flags, hard links, and the errno of what goes wrong.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use anyhow::Result;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, mkdirat, open, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::Line;
use super::scene::{Scene, code};

pub(super) const CHECKS: &[Line] = &[
    (
        "rename",
        "rename(2) replaces files and empty directories, and refuses what it must.",
        rename,
    ),
    (
        "rename-noreplace",
        "RENAME_NOREPLACE never replaces.",
        noreplace,
    ),
    (
        "rename-exchange",
        "RENAME_EXCHANGE swaps files with directories, open handles included.",
        exchange,
    ),
    (
        "rename-whiteout",
        "RENAME_WHITEOUT leaves a whiteout, as the filesystem below allows.",
        whiteout,
    ),
    (
        "hard-links",
        "All names of a file share attributes, contents, times and extended attributes at once.",
        hard_links,
    ),
    (
        "errno-table",
        "What goes wrong answers the errno of its manual page.",
        errors,
    ),
    (
        "open-flags",
        "O_CREAT, O_EXCL, O_DIRECTORY, O_NOFOLLOW, O_PATH and O_NOATIME do what open(2) says.",
        open_flags,
    ),
];

fn rename(scene: &Scene) -> Result<()> {
    let path = |name: &str| scene.path(name);
    let call = |from: &str, to: &str| code(fs::rename(path(from), path(to)));
    fs::write(path("f"), "f")?;
    fs::write(path("g"), "g")?;
    fs::create_dir_all(path("d/sub"))?;
    fs::create_dir(path("empty"))?;
    scene.expect("file over file", call("f", "g"), Ok::<_, Errno>(()));
    scene.expect("contents", fs::read(path("g"))?, b"f");
    scene.expect(
        "file over directory",
        call("g", "empty"),
        Err::<(), _>(Errno::ISDIR),
    );
    scene.expect(
        "directory over file",
        call("empty", "g"),
        Err::<(), _>(Errno::NOTDIR),
    );
    scene.see("over a full directory", call("empty", "d"));
    scene.expect("full over empty", call("d", "empty"), Ok::<_, Errno>(()));
    scene.expect(
        "into itself",
        call("empty", "empty/sub/x"),
        Err::<(), _>(Errno::INVAL),
    );
    scene.see("over an ancestor", call("empty/sub", "empty"));
    scene.expect("missing", call("none", "x"), Err::<(), _>(Errno::NOENT));
    scene.expect("to itself", call("g", "g"), Ok::<_, Errno>(()));
    fs::hard_link(path("g"), path("h"))?;
    // rename(2): two names of one file, nothing happens.
    scene.expect("over another name", call("g", "h"), Ok::<_, Errno>(()));
    scene.expect(
        "both stay",
        (path("g").exists(), path("h").exists()),
        (true, true),
    );
    scene.see(". of a directory", call("empty/.", "x"));
    scene.see("with a slash", call("g/", "x"));
    Ok(())
}

fn with_flags(scene: &Scene, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, scene.path(from), CWD, scene.path(to), flags)
}

fn noreplace(scene: &Scene) -> Result<()> {
    fs::write(scene.path("f"), "f")?;
    fs::write(scene.path("g"), "g")?;
    let flags = RenameFlags::NOREPLACE;
    scene.expect(
        "over a file",
        with_flags(scene, "f", "g", flags),
        Err::<(), _>(Errno::EXIST),
    );
    scene.expect(
        "to itself",
        with_flags(scene, "f", "f", flags),
        Err::<(), _>(Errno::EXIST),
    );
    scene.expect(
        "to a new name",
        with_flags(scene, "f", "h", flags),
        Ok::<_, Errno>(()),
    );
    scene.expect("contents", fs::read(scene.path("h"))?, b"f");
    let both = flags | RenameFlags::EXCHANGE;
    scene.expect(
        "with EXCHANGE",
        with_flags(scene, "h", "g", both),
        Err::<(), _>(Errno::INVAL),
    );
    let unknown = RenameFlags::from_bits_retain(1 << 20);
    scene.expect(
        "unknown flag",
        with_flags(scene, "h", "g", unknown),
        Err::<(), _>(Errno::INVAL),
    );
    Ok(())
}

fn exchange(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"file")?;
    fs::create_dir(scene.path("d"))?;
    fs::write(scene.path("d/in"), "in")?;
    let flags = RenameFlags::EXCHANGE;
    scene.expect(
        "file and directory",
        with_flags(scene, "f", "d", flags),
        Ok::<_, Errno>(()),
    );
    scene.expect("the file", fs::read(scene.path("d"))?, b"file");
    scene.expect("the directory", fs::read(scene.path("f/in"))?, b"in");
    file.write_all_at(b"FILE", 0)?;
    scene.expect("through its handle", fs::read(scene.path("d"))?, b"FILE");
    scene.expect(
        "missing",
        with_flags(scene, "d", "none", flags),
        Err::<(), _>(Errno::NOENT),
    );
    scene.see("with what is in it", with_flags(scene, "f", "f/in", flags));
    scene.see("links of the parent", scene.stat(".")?.links);
    Ok(())
}

fn whiteout(scene: &Scene) -> Result<()> {
    fs::write(scene.path("f"), "f")?;
    let flags = RenameFlags::WHITEOUT;
    scene.see("rename", with_flags(scene, "f", "g", flags));
    scene.see(
        "what is left",
        scene.stat("f").map(|stat| (stat.mode, stat.device)),
    );
    scene.see("the new name", scene.stat("g").map(|stat| stat.mode));
    Ok(())
}

fn hard_links(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"one")?;
    fs::create_dir(scene.path("d"))?;
    fs::hard_link(scene.path("f"), scene.path("g"))?;
    fs::hard_link(scene.path("g"), scene.path("d/h"))?;
    let other = scene.open("g", 0)?;
    other.write_all_at(b"written by another name", 0)?;
    scene.expect(
        "contents",
        fs::read(scene.path("d/h"))?,
        b"written by another name",
    );
    fs::set_permissions(scene.path("d/h"), fs::Permissions::from_mode(0o640))?;
    file.set_len(7)?;
    rustix::fs::setxattr(
        scene.path("f"),
        "user.a",
        b"x",
        rustix::fs::XattrFlags::empty(),
    )?;
    let all: Result<Vec<_>, _> = ["f", "g", "d/h"]
        .iter()
        .map(|name| scene.stat(name))
        .collect();
    let all = all?;
    scene.expect(
        "attributes of all names are equal",
        all.windows(2).all(|pair| pair[0] == pair[1]),
        true,
    );
    scene.expect("links, size", (all[0].links, all[0].size), (3, 7));
    let numbers: Result<Vec<_>, _> = ["f", "g", "d/h"]
        .iter()
        .map(|name| fs::metadata(scene.path(name)).map(|data| data.ino()))
        .collect();
    let numbers = numbers?;
    scene.expect(
        "one inode",
        numbers.windows(2).all(|pair| pair[0] == pair[1]),
        true,
    );
    fs::remove_file(scene.path("f"))?;
    scene.expect("links by descriptor", file.metadata()?.nlink(), 2);
    scene.expect("links by name", fs::metadata(scene.path("g"))?.nlink(), 2);
    let directory = code(fs::hard_link(scene.path("d"), scene.path("e")));
    scene.expect("of a directory", directory, Err::<(), _>(Errno::PERM));
    let exists = code(fs::hard_link(scene.path("g"), scene.path("d/h")));
    scene.expect("over a name", exists, Err::<(), _>(Errno::EXIST));
    symlink("g", scene.path("s"))?;
    linkat(
        CWD,
        scene.path("s"),
        CWD,
        scene.path("followed"),
        AtFlags::SYMLINK_FOLLOW,
    )?;
    scene.expect("through a symlink", scene.stat("followed")?.links, 3);
    Ok(())
}

fn errors(scene: &Scene) -> Result<()> {
    let path = |name: &str| scene.path(name);
    fs::write(path("f"), "f")?;
    fs::create_dir_all(path("d/sub"))?;
    symlink("loop", path("loop"))?;
    symlink("d", path("to-d"))?;
    let make = |name: &str| mkdirat(CWD, path(name), Mode::from_raw_mode(0o755));
    let unlink = |name: &str, flags| unlinkat(CWD, path(name), flags);
    let (file, directory) = (AtFlags::empty(), AtFlags::REMOVEDIR);
    let errno = Err::<(), _>;
    let opens = |name: &str, flags| open(path(name), flags, Mode::RUSR).map(drop);
    scene.expect("mkdir over a file", make("f"), errno(Errno::EXIST));
    scene.expect("mkdir over a directory", make("d"), errno(Errno::EXIST));
    scene.expect(
        "mkdir over a dangling loop",
        make("loop"),
        errno(Errno::EXIST),
    );
    scene.expect("mkdir below a file", make("f/x"), errno(Errno::NOTDIR));
    scene.expect("mkdir below nothing", make("none/x"), errno(Errno::NOENT));
    scene.expect("mkdir below a loop", make("loop/x"), errno(Errno::LOOP));
    scene.expect(
        "rmdir of a full directory",
        unlink("d", directory),
        errno(Errno::NOTEMPTY),
    );
    scene.expect(
        "rmdir of a file",
        unlink("f", directory),
        errno(Errno::NOTDIR),
    );
    scene.expect("rmdir of .", unlink("d/.", directory), errno(Errno::INVAL));
    scene.see("rmdir of ..", unlink("d/sub/..", directory));
    scene.expect(
        "rmdir of a symlink",
        unlink("to-d", directory),
        errno(Errno::NOTDIR),
    );
    scene.expect(
        "unlink of a directory",
        unlink("d", file),
        errno(Errno::ISDIR),
    );
    scene.expect(
        "unlink of nothing",
        unlink("none", file),
        errno(Errno::NOENT),
    );
    scene.expect(
        "unlink with a slash",
        unlink("f/", file),
        errno(Errno::NOTDIR),
    );
    scene.expect(
        "write to a directory",
        opens("d", OFlags::RDWR),
        errno(Errno::ISDIR),
    );
    scene.expect(
        "create over a directory",
        opens("d", OFlags::CREATE | OFlags::RDWR),
        errno(Errno::ISDIR),
    );
    scene.expect(
        "list a file",
        opens("f", OFlags::DIRECTORY),
        errno(Errno::NOTDIR),
    );
    scene.expect(
        "open a loop",
        opens("loop", OFlags::RDONLY),
        errno(Errno::LOOP),
    );
    scene.expect(
        "truncate a directory",
        crate::sys::truncate(path("d"), 0),
        errno(Errno::ISDIR),
    );
    scene.expect(
        "readlink of a file",
        code(fs::read_link(path("f"))),
        errno(Errno::INVAL),
    );
    scene.expect(
        "read of a directory",
        rustix::io::read(fs::File::open(path("d"))?, &mut [0; 8][..]),
        Err::<usize, _>(Errno::ISDIR),
    );
    let reading = open(path("f"), OFlags::RDONLY, Mode::empty())?;
    scene.expect(
        "write to a reader",
        rustix::io::write(&reading, b"x"),
        Err::<usize, _>(Errno::BADF),
    );
    scene.expect(
        "ftruncate of a reader",
        rustix::fs::ftruncate(&reading, 0),
        errno(Errno::INVAL),
    );
    let writing = open(path("f"), OFlags::WRONLY, Mode::empty())?;
    scene.expect(
        "read of a writer",
        rustix::io::read(&writing, &mut [0; 8][..]),
        Err::<usize, _>(Errno::BADF),
    );
    scene.see("fsync of a reader", rustix::fs::fsync(&reading));
    scene.see(
        "fsync of a directory",
        code(fs::File::open(path("d"))?.sync_all()),
    );
    let long = "x/".repeat(3000);
    scene.expect(
        "a path over 4096 bytes",
        make(&long),
        errno(Errno::NAMETOOLONG),
    );
    Ok(())
}

fn open_flags(scene: &Scene) -> Result<()> {
    let opens =
        |name: &str, flags| open(scene.path(name), flags, Mode::from_raw_mode(0o644)).map(drop);
    let (exclusive, create) = (
        OFlags::CREATE | OFlags::EXCL | OFlags::RDWR,
        OFlags::CREATE | OFlags::RDWR,
    );
    scene.expect("O_EXCL", opens("f", exclusive), Ok::<_, Errno>(()));
    scene.expect(
        "O_EXCL again",
        opens("f", exclusive),
        Err::<(), _>(Errno::EXIST),
    );
    scene.expect(
        "O_CREAT of what is there",
        opens("f", create),
        Ok::<_, Errno>(()),
    );
    symlink("f", scene.path("s"))?;
    scene.expect(
        "O_NOFOLLOW",
        opens("s", OFlags::NOFOLLOW),
        Err::<(), _>(Errno::LOOP),
    );
    scene.expect(
        "O_PATH of a symlink",
        opens("s", OFlags::PATH | OFlags::NOFOLLOW),
        Ok::<_, Errno>(()),
    );
    scene.expect(
        "O_DIRECTORY",
        opens("f", OFlags::DIRECTORY),
        Err::<(), _>(Errno::NOTDIR),
    );
    scene.expect(
        "O_NOATIME by root",
        opens("f", OFlags::NOATIME),
        Ok::<_, Errno>(()),
    );
    let alice = scene.as_user(crate::op::User::Alice, || opens("f", OFlags::NOATIME))?;
    scene.expect("O_NOATIME by another", alice, Err::<(), _>(Errno::PERM));
    // The mode of what is created does not bind its maker's descriptor.
    let path = scene.path("readonly");
    let made = scene.as_user(crate::op::User::Alice, || {
        let file = open(&path, create, Mode::from_raw_mode(0o400))?;
        rustix::io::write(&file, b"written")
    })?;
    scene.expect("write to a new file of mode 0400", made, Ok::<_, Errno>(7));
    scene.see(
        "created with set-user-ID",
        opens_with(scene, "suid", 0o4711),
    );
    Ok(())
}

fn opens_with(scene: &Scene, name: &str, mode: u32) -> Result<String, Errno> {
    drop(open(
        scene.path(name),
        OFlags::CREATE | OFlags::RDWR,
        Mode::from_raw_mode(mode),
    )?);
    scene.mode(name)
}
