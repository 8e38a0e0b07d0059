//! Open files: those without a name, holes, extended attributes, and their handles.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::harness::Sandbox;

#[test]
fn an_unlinked_file_stays_whole_while_it_is_open() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let path = sandbox.mountpoint().join("f");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::read_dir(sandbox.source()).unwrap().count(), 0);
    file.write_all(b" after").unwrap();
    file.sync_all().unwrap();
    file.set_len(9).unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before af");
    let stat = rustix::fs::fstat(&file).unwrap();
    assert_eq!((stat.st_nlink, stat.st_size), (0, 9));
    // A new file of the same name is another file.
    fs::write(&path, "new").unwrap();
    assert_ne!(rustix::fs::stat(&path).unwrap().st_ino, stat.st_ino);
    drop(file);
    server.unmount();
}

#[test]
fn an_inode_without_name_or_open_file_lives_for_its_path_descriptor() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let path = sandbox.mountpoint().join("d");
    fs::create_dir(&path).unwrap();
    let held = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    fs::remove_dir(&path).unwrap();
    assert_eq!(rustix::fs::fstat(&held).unwrap().st_nlink, 0);
    let made = rustix::fs::mkdirat(&held, "sub", Mode::from_raw_mode(0o755));
    assert_eq!(made, Err(Errno::NOENT));
    drop(held);
    server.unmount();
}

#[test]
fn a_file_that_was_renamed_over_keeps_its_content() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let (old, new) = (
        sandbox.mountpoint().join("old"),
        sandbox.mountpoint().join("new"),
    );
    fs::write(&old, "old content").unwrap();
    fs::write(&new, "new content").unwrap();
    let open_old = File::open(&old).unwrap();
    let open_new = File::options().read(true).write(true).open(&new).unwrap();
    fs::rename(&new, &old).unwrap();
    let mut bytes = [0; 11];
    open_old.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"old content");
    open_new.write_all_at(b"NEW", 0).unwrap();
    assert_eq!(fs::read(&old).unwrap(), b"NEW content");
    assert_eq!(fs::metadata(&new).unwrap_err().raw_os_error(), Some(2));
    drop((open_old, open_new));
    server.unmount();
}

#[test]
fn holes_are_found_where_they_are() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let probe = |dir: &std::path::Path| {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join("f"))
            .unwrap();
        // More than 4 GiB, mostly nothing.
        let far = 5 << 30;
        file.write_all_at(&[1; 4096], 65_536).unwrap();
        file.write_all_at(&[2; 4096], far).unwrap();
        file.set_len(far + 100_000).unwrap();
        file.sync_all().unwrap();
        let mut found = Vec::new();
        for from in [
            0,
            65_536,
            70_000,
            far,
            far + 4096,
            far + 100_000,
            far + 200_000,
        ] {
            found.push(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(from)));
            found.push(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(from)));
        }
        found
    };
    let native = probe(&sandbox.native());
    assert_eq!(native[0], Ok(65_536), "the lower filesystem has no holes");
    assert_eq!(probe(&sandbox.mountpoint()), native);
    server.unmount();
}

#[test]
fn a_range_is_copied_between_files() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let dir = sandbox.mountpoint();
    fs::write(dir.join("from"), [7; 10_000]).unwrap();
    let (from, to) = (
        File::open(dir.join("from")).unwrap(),
        File::create(dir.join("to")).unwrap(),
    );
    let (mut read_at, mut write_at) = (1000, 5000);
    let (in_at, out_at) = (Some(&mut read_at), Some(&mut write_at));
    let copied = rustix::fs::copy_file_range(&from, in_at, &to, out_at, 4000).unwrap();
    assert_eq!((copied, read_at, write_at), (4000, 5000, 9000));
    let content = fs::read(dir.join("to")).unwrap();
    assert_eq!(content[..5000], [0; 5000]);
    assert_eq!(content[5000..], [7; 4000]);
    drop((from, to));
    server.unmount();
}

#[test]
fn extended_attributes_are_the_native_ones() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    let on_mount = attribute_steps(&sandbox.mountpoint());
    let on_native = attribute_steps(&sandbox.native());
    assert_eq!(
        on_native[0], "Ok(())",
        "the lower filesystem has no attributes"
    );
    assert_eq!(on_mount, on_native);
    server.unmount();
}

fn attribute_steps(dir: &std::path::Path) -> Vec<String> {
    let file = dir.join("f");
    fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink("f", dir.join("l")).unwrap();
    let mut log = Vec::new();
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&file, name, value, flags);
    log.push(format!("{:?}", set("user.a", b"1", XattrFlags::empty())));
    log.push(format!("{:?}", set("user.a", b"2", XattrFlags::CREATE)));
    log.push(format!("{:?}", set("user.b", b"2", XattrFlags::REPLACE)));
    log.push(format!(
        "{:?}",
        set("user.big", &[3; 900], XattrFlags::empty())
    ));
    log.push(format!("{:?}", set("nonsense", b"", XattrFlags::empty())));
    log.push(format!("{:?}", set("trusted.t", b"t", XattrFlags::empty())));
    let value = |name: &str, size| {
        let mut buffer = vec![0; size];
        let read = rustix::fs::getxattr(&file, name, &mut buffer[..]);
        format!("{read:?} {:?}", &buffer[..size.min(4)])
    };
    for (name, size) in [
        ("user.a", 10),
        ("user.a", 0),
        ("user.big", 10),
        ("user.none", 10),
    ] {
        log.push(value(name, size));
    }
    let mut list = vec![0; 1000];
    let length = rustix::fs::listxattr(&file, &mut list[..]).unwrap();
    let mut names: Vec<_> = list[..length].split(|byte| *byte == 0).collect();
    names.sort_unstable();
    log.push(format!("{names:?}"));
    log.push(format!("{:?}", rustix::fs::removexattr(&file, "user.a")));
    log.push(format!("{:?}", rustix::fs::removexattr(&file, "user.a")));
    let link = rustix::fs::lsetxattr(dir.join("l"), "user.a", b"1", XattrFlags::empty());
    log.push(format!("{link:?}"));
    log
}

#[test]
fn handles_never_repeat() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let dir = sandbox.mountpoint();
            scope.spawn(move || {
                for round in 0..100 {
                    let path = dir.join(format!("{thread}-{round}"));
                    fs::write(&path, "x").unwrap();
                    assert_eq!(fs::read(&path).unwrap(), b"x");
                    fs::read_dir(&dir).unwrap().for_each(drop);
                }
            });
        }
    });
    let (_, log) = server.unmount();
    let handles: Vec<&str> = log
        .iter()
        .filter_map(|line| line.split_once("HandleId(")?.1.split_once(')'))
        .map(|(number, _)| number)
        .collect();
    assert!(handles.len() >= 1200, "{} opens in the log", handles.len());
    let distinct: HashSet<_> = handles.iter().collect();
    assert_eq!(distinct.len(), handles.len());
}

#[test]
fn many_writers_find_no_foreign_byte() {
    let sandbox = Sandbox::new();
    let server = sandbox.serve(&[]);
    assert_eq!(foreign_bytes(&sandbox), 0);
    server.unmount();
}

/// Whether eight writers at once find in their files what they put there.
pub(crate) fn concurrent_files_are_their_own(arguments: &[&str]) -> bool {
    let sandbox = Sandbox::new();
    let _server = sandbox.serve(arguments);
    foreign_bytes(&sandbox) == 0
}

/// Writes, closes and reads files of eight writers at once; counts those that failed or
/// hold anything else than what their writer put there.
fn foreign_bytes(sandbox: &Sandbox) -> usize {
    let wrong = |path: &std::path::Path, content: &[u8]| {
        fs::write(path, content).is_err() || fs::read(path).ok().as_deref() != Some(content)
    };
    let count_wrong = |writer: u8| {
        let files = (0..50).map(|file| sandbox.mountpoint().join(format!("{writer}-{file}")));
        files
            .filter(|path| wrong(path, &[writer + 1; 10_000]))
            .count()
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|writer| scope.spawn(move || count_wrong(writer)))
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum()
    })
}
