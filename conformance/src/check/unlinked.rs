//! Files and directories whose names have gone or changed while something holds them.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use anyhow::Result;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx, unlinkat};
use rustix::process::{chdir, getcwd};

use super::Line;
use super::scene::{Scene, code};

pub(super) const CHECKS: &[Line] = &[
    (
        "unlinked-open-file",
        "A file without a name is read, written, sized and changed through its descriptor.",
        open_file,
    ),
    (
        "unlinked-o-path",
        "An O_PATH descriptor alone keeps a file without a name, which can be opened again through /proc.",
        o_path,
    ),
    (
        "unlinked-cwd",
        "A removed working directory answers as nowhere: it exists, nothing is in it, nothing can be made in it.",
        working_directory,
    ),
    (
        "unlinked-open-directory",
        "A removed directory that is open lists nothing and refuses new names.",
        open_directory,
    ),
    (
        "replaced-while-open",
        "A file over which another was renamed keeps its own contents for whoever has it open.",
        replaced,
    ),
    (
        "renamed-while-open",
        "A descriptor follows its file through renames, and into other directories.",
        renamed,
    ),
    (
        "parent-renamed-while-open",
        "Relative calls work below a directory that was moved.",
        parent_renamed,
    ),
];

fn open_file(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"before")?;
    fs::remove_file(scene.path("f"))?;
    scene.expect("links", file.metadata()?.nlink(), 0);
    file.write_all_at(b"after!", 3)?;
    let mut bytes = [0; 9];
    file.read_exact_at(&mut bytes, 0)?;
    scene.expect("contents", bytes, *b"befafter!");
    file.set_len(100)?;
    scene.expect("size", file.metadata()?.len(), 100);
    file.set_permissions(fs::Permissions::from_mode(0o604))?;
    scene.expect("mode", file.metadata()?.mode() & 0o7777, 0o604);
    scene.see("fsync", code(file.sync_all()));
    // The number may be given to a new file; the old one stays itself.
    let others: Result<Vec<_>> = (0..20)
        .map(|number| scene.file(&format!("other{number}"), b"other"))
        .collect();
    let others = others?;
    file.read_exact_at(&mut bytes, 0)?;
    scene.expect("contents beside new files", bytes, *b"befafter!");
    scene.expect("new files", others.len(), 20);
    Ok(())
}

fn o_path(scene: &Scene) -> Result<()> {
    use std::os::fd::AsRawFd;
    scene.file("f", b"held")?;
    let held = rustix::fs::open(scene.path("f"), OFlags::PATH, Mode::empty())?;
    fs::remove_file(scene.path("f"))?;
    let links = statx(&held, "", AtFlags::EMPTY_PATH, StatxFlags::NLINK)?.stx_nlink;
    scene.expect("links", links, 0);
    let again = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", held.as_raw_fd()))?;
    let mut bytes = [0; 4];
    again.read_exact_at(&mut bytes, 0)?;
    scene.expect("contents", bytes, *b"held");
    scene.see("write", code(again.write_all_at(b"more", 4)));
    scene.expect("size", again.metadata()?.len(), 8);
    Ok(())
}

fn working_directory(scene: &Scene) -> Result<()> {
    let dir = scene.path("d");
    fs::create_dir(&dir)?;
    chdir(&dir)?;
    fs::remove_dir(&dir)?;
    scene.expect(
        "getcwd",
        getcwd(Vec::new()).map(drop),
        Err::<(), _>(rustix::io::Errno::NOENT),
    );
    scene.expect("stat .", fs::metadata(".")?.nlink(), 0);
    scene.see("mode of .", fs::metadata(".")?.mode());
    scene.see(
        "list .",
        fs::read_dir(".")
            .map(Iterator::count)
            .map_err(|error| error.kind()),
    );
    scene.see("create", code(fs::write("f", "x")));
    scene.see("mkdir", code(fs::create_dir("e")));
    scene.see("look up", code(fs::metadata("f")));
    scene.see(
        "chmod .",
        code(fs::set_permissions(".", fs::Permissions::from_mode(0o700))),
    );
    scene.see("mode after", fs::metadata(".")?.mode());
    chdir("/")?;
    Ok(())
}

fn open_directory(scene: &Scene) -> Result<()> {
    let dir = scene.path("d");
    fs::create_dir(&dir)?;
    fs::write(dir.join("f"), "x")?;
    let open = rustix::fs::open(&dir, OFlags::DIRECTORY, Mode::empty())?;
    unlinkat(&open, "f", AtFlags::empty())?;
    fs::remove_dir(&dir)?;
    // A new directory of the same name is another.
    fs::create_dir(&dir)?;
    fs::write(dir.join("new"), "x")?;
    scene.expect("entries", rustix::fs::Dir::read_from(&open)?.count(), 0);
    let create = openat(&open, "g", OFlags::CREATE | OFlags::RDWR, Mode::RUSR).map(drop);
    scene.expect(
        "create in it",
        create,
        Err::<(), _>(rustix::io::Errno::NOENT),
    );
    scene.expect("links", fs::File::from(open).metadata()?.nlink(), 0);
    Ok(())
}

fn replaced(scene: &Scene) -> Result<()> {
    let old = scene.file("f", b"old contents")?;
    let new = scene.file("g", b"new")?;
    fs::rename(scene.path("g"), scene.path("f"))?;
    let mut bytes = [0; 12];
    old.read_exact_at(&mut bytes, 0)?;
    scene.expect("old descriptor", bytes, *b"old contents");
    old.write_all_at(b"OLD", 0)?;
    scene.expect("by name", fs::read(scene.path("f"))?, b"new");
    scene.expect("links of the old", old.metadata()?.nlink(), 0);
    let same = new.metadata()?.ino() == fs::metadata(scene.path("f"))?.ino();
    scene.expect("the name is the new file", same, true);
    scene.expect("g is gone", scene.path("g").exists(), false);
    Ok(())
}

fn renamed(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"one")?;
    fs::create_dir(scene.path("d"))?;
    fs::rename(scene.path("f"), scene.path("g"))?;
    file.write_all_at(b"two", 3)?;
    fs::rename(scene.path("g"), scene.path("d/h"))?;
    file.write_all_at(b"three", 6)?;
    file.set_permissions(fs::Permissions::from_mode(0o640))?;
    scene.expect(
        "by the last name",
        fs::read(scene.path("d/h"))?,
        b"onetwothree",
    );
    scene.expect("mode by name", scene.mode("d/h")?, "0640");
    scene.see(
        "old names",
        (
            code(fs::metadata(scene.path("f"))),
            code(fs::metadata(scene.path("g"))),
        ),
    );
    Ok(())
}

fn parent_renamed(scene: &Scene) -> Result<()> {
    fs::create_dir_all(scene.path("a/b"))?;
    fs::create_dir(scene.path("c"))?;
    let open = rustix::fs::open(scene.path("a/b"), OFlags::DIRECTORY, Mode::empty())?;
    fs::rename(scene.path("a"), scene.path("c/a"))?;
    let flags = OFlags::CREATE | OFlags::WRONLY;
    drop(openat(&open, "f", flags, Mode::RUSR)?);
    scene.expect(
        "made below the new place",
        scene.path("c/a/b/f").exists(),
        true,
    );
    let parent = statx(&open, "..", AtFlags::empty(), StatxFlags::INO)?.stx_ino;
    let same = parent == fs::metadata(scene.path("c/a"))?.ino();
    scene.expect(".. is the moved directory", same, true);
    Ok(())
}
