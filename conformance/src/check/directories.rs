//! Directories that are large, have awkward names, or change while they are read.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, open, seek};
use rustix::io::Errno;

use super::Line;
use super::scene::{Scene, code};

pub(super) const CHECKS: &[Line] = &[
    (
        "huge-directory",
        "A directory of 100,000 entries lists each exactly once and each can be looked up.",
        huge,
    ),
    (
        "names-of-255-bytes",
        "Names of 255 bytes that are not UTF-8 work everywhere; 256 bytes are ENAMETOOLONG.",
        long_names,
    ),
    (
        "seekdir",
        "Every position that was given out can be returned to, and shows what followed.",
        seekdir,
    ),
    (
        "rewinddir",
        "A directory that is rewound shows what has come since it was opened, read or not.",
        rewound,
    ),
    (
        "readdir-across-changes",
        "What is there throughout is listed exactly once while other names come and go.",
        changes,
    ),
    (
        "readdir-inode-numbers",
        "The numbers and kinds in a listing are those of stat(2).",
        numbers,
    ),
    (
        "directory-links-and-times",
        "Subdirectories count as links, and each change sets the directory's times.",
        links_and_times,
    ),
];

const ENTRIES: usize = 100_000;

fn open_directory(scene: &Scene, name: &str) -> Result<OwnedFd> {
    Ok(open(scene.path(name), OFlags::DIRECTORY, Mode::empty())?)
}

/// Entries from here to the end, at most `limit`: name, number, kind, next position.
fn entries(directory: impl AsFd, limit: usize) -> Result<Vec<(OsString, u64, String, u64)>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut stream = RawDir::new(directory, &mut buffer);
    let mut entries = Vec::new();
    while entries.len() < limit {
        let Some(entry) = stream.next() else { break };
        let entry = entry?;
        let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
        let kind = format!("{:?}", entry.file_type());
        entries.push((name, entry.ino(), kind, entry.next_entry_cookie()));
    }
    Ok(entries)
}

fn huge(scene: &Scene) -> Result<()> {
    let dir = scene.path("d");
    fs::create_dir(&dir)?;
    // Links to few files: a hundred thousand inodes would cost more and show no more.
    for number in 0..ENTRIES {
        let name = dir.join(format!("entry-{number:06}"));
        if number % 1000 == 0 {
            fs::write(&name, "x")?;
        } else {
            let first = dir.join(format!("entry-{:06}", number / 1000 * 1000));
            fs::hard_link(first, name)?;
        }
    }
    let listed: Result<Vec<_>, _> = fs::read_dir(&dir)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect();
    let listed = listed?;
    scene.expect("entries", listed.len(), ENTRIES);
    let distinct: BTreeSet<_> = listed.iter().collect();
    scene.expect("distinct entries", distinct.len(), ENTRIES);
    let missing = (0..ENTRIES)
        .step_by(77)
        .filter(|number| !dir.join(format!("entry-{number:06}")).exists())
        .count();
    scene.expect("missing in lookups", missing, 0);
    scene.expect(
        "links",
        fs::metadata(dir.join("entry-005000"))?.nlink(),
        1000,
    );
    scene.see("rmdir of it", code(fs::remove_dir(&dir)));
    Ok(())
}

fn long_names(scene: &Scene) -> Result<()> {
    let name = |byte: u8, length| OsString::from_vec(vec![byte; length]);
    let (first, second) = (scene.path(name(0xff, 255)), scene.path(name(0x80, 255)));
    fs::write(&first, "long")?;
    fs::hard_link(&first, &second)?;
    fs::rename(&first, scene.path(name(0x07, 255)))?;
    fs::create_dir(&first)?;
    std::os::unix::fs::symlink(name(0xc3, 255), first.join(name(b'\n', 255)))?;
    scene.expect("contents", fs::read(&second)?, b"long");
    let mut listed: Vec<_> = entries(open_directory(scene, ".")?, 100)?
        .into_iter()
        .map(|(name, _, kind, _)| (name, kind))
        .collect();
    listed.sort();
    scene.see("listing", listed);
    scene.see("target", fs::read_link(first.join(name(b'\n', 255)))?);
    let long = scene.path(name(b'x', 256));
    scene.expect(
        "create 256",
        code(fs::write(&long, "x")),
        Err::<(), _>(Errno::NAMETOOLONG),
    );
    scene.expect(
        "mkdir 256",
        code(fs::create_dir(&long)),
        Err::<(), _>(Errno::NAMETOOLONG),
    );
    scene.expect(
        "rename 256",
        code(fs::rename(&second, &long)),
        Err::<(), _>(Errno::NAMETOOLONG),
    );
    scene.expect(
        "stat 256",
        code(fs::metadata(&long)),
        Err::<(), _>(Errno::NAMETOOLONG),
    );
    Ok(())
}

fn seekdir(scene: &Scene) -> Result<()> {
    fs::create_dir(scene.path("d"))?;
    for number in 0..500 {
        fs::write(scene.path(format!("d/{number}")), "")?;
    }
    let directory = open_directory(scene, "d")?;
    let all = entries(&directory, usize::MAX)?;
    scene.expect("entries", all.len(), 502);
    // The positions are the filesystem's own; what follows each is not.
    let names = |list: &[(OsString, u64, String, u64)]| -> Vec<OsString> {
        list.iter().map(|(name, ..)| name.clone()).collect()
    };
    let mut wrong = Vec::new();
    for index in (0..all.len()).rev().step_by(7) {
        seek(&directory, SeekFrom::Start(all[index].3))?;
        let rest = entries(&directory, usize::MAX)?;
        if names(&rest) != names(&all[index + 1..]) {
            wrong.push(index);
        }
    }
    scene.expect(
        "positions after which other names followed",
        wrong,
        Vec::<usize>::new(),
    );
    seek(&directory, SeekFrom::Start(0))?;
    let again = entries(&directory, usize::MAX)?;
    scene.expect(
        "the same after rewinding",
        names(&again) == names(&all),
        true,
    );
    Ok(())
}

fn rewound(scene: &Scene) -> Result<()> {
    fs::create_dir(scene.path("d"))?;
    let directory = open_directory(scene, "d")?;
    for (count, name) in ["before it is read", "after its end"].iter().enumerate() {
        fs::write(scene.path(format!("d/{count}")), "")?;
        seek(&directory, SeekFrom::Start(0))?;
        let listed = entries(&directory, usize::MAX)?;
        // With `.` and `..`.
        scene.expect(*name, listed.len(), count + 3);
    }
    Ok(())
}

fn changes(scene: &Scene) -> Result<()> {
    fs::create_dir(scene.path("d"))?;
    let stays = |number| scene.path(format!("d/stays-{number:04}"));
    let goes = |number| scene.path(format!("d/goes-{number:04}"));
    for number in 0..1000 {
        fs::write(stays(number), "")?;
        fs::write(goes(number), "")?;
    }
    let directory = open_directory(scene, "d")?;
    let mut seen: Vec<OsString> = Vec::new();
    for round in 0.. {
        // Each round reads some and continues after the last one that it took.
        let some = entries(&directory, 37)?;
        let Some((.., next)) = some.last() else { break };
        seek(&directory, SeekFrom::Start(*next))?;
        seen.extend(some.into_iter().map(|(name, ..)| name));
        for number in (round * 20..round * 20 + 20).take_while(|number| *number < 1000) {
            fs::remove_file(goes(number))?;
            fs::write(scene.path(format!("d/comes-{number:04}")), "")?;
        }
    }
    let staying: Vec<_> = seen
        .iter()
        .filter(|name| name.as_encoded_bytes().starts_with(b"stays"))
        .collect();
    let distinct: BTreeSet<_> = staying.iter().collect();
    scene.expect("those that stay, listed", staying.len(), 1000);
    scene.expect("those that stay, distinct", distinct.len(), 1000);
    let all: BTreeSet<_> = seen.iter().collect();
    scene.expect("names listed twice", seen.len() - all.len(), 0);
    Ok(())
}

fn numbers(scene: &Scene) -> Result<()> {
    fs::create_dir_all(scene.path("d/sub"))?;
    fs::write(scene.path("d/file"), "")?;
    std::os::unix::fs::symlink("file", scene.path("d/link"))?;
    fs::hard_link(scene.path("d/file"), scene.path("d/hard"))?;
    let mut listed = entries(open_directory(scene, "d")?, 100)?;
    listed.sort();
    for (name, number, kind, _) in listed {
        let path = scene.path("d").join(&name);
        let metadata = fs::symlink_metadata(&path)?;
        scene.see(format!("kind of {name:?}"), kind);
        scene.expect(
            format!("number of {name:?} is stat's"),
            metadata.ino() == number,
            true,
        );
    }
    Ok(())
}

fn links_and_times(scene: &Scene) -> Result<()> {
    use crate::outcome::When;
    use std::time::{Duration, SystemTime};
    fs::create_dir(scene.path("d"))?;
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let age = || fs::File::open(scene.path("d"))?.set_modified(old);
    let changed = || scene.stat("d").map(|stat| stat.modification == When::Now);
    age()?;
    scene.expect("aged", changed()?, false);
    fs::create_dir(scene.path("d/sub"))?;
    scene.expect("after mkdir", changed()?, true);
    scene.see("links", scene.stat("d")?.links);
    age()?;
    fs::write(scene.path("d/f"), "")?;
    scene.expect("after create", changed()?, true);
    age()?;
    fs::rename(scene.path("d/f"), scene.path("f"))?;
    scene.expect("after a rename out of it", changed()?, true);
    age()?;
    fs::hard_link(scene.path("f"), scene.path("d/g"))?;
    scene.expect("after link", changed()?, true);
    age()?;
    fs::remove_file(scene.path("d/g"))?;
    scene.expect("after unlink", changed()?, true);
    age()?;
    fs::remove_dir(scene.path("d/sub"))?;
    scene.expect("after rmdir", changed()?, true);
    scene.see("links in the end", scene.stat("d")?.links);
    Ok(())
}
