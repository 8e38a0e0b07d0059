//! Large directories, and positions in them across changes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::{RawDir, SeekFrom, seek};

use crate::harness::Sandbox;

const COUNT: usize = 10_000;

/// Names with the position after each, from where the descriptor stands.
fn listing(dir: &File) -> Vec<(String, u64)> {
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut raw = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        names.push((name, entry.next_entry_cookie()));
    }
    names
}

fn fill(dir: &Path) {
    (0..COUNT).for_each(|number| drop(File::create(dir.join(number.to_string())).unwrap()));
}

#[test]
fn ten_thousand_names_come_once_each_from_any_position() {
    let sandbox = Sandbox::new();
    fill(&sandbox.source());
    let server = sandbox.serve(&[]);
    let dir = File::open(sandbox.mountpoint()).unwrap();
    let all = listing(&dir);
    let distinct: BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
    assert_eq!((all.len(), distinct.len()), (COUNT + 2, COUNT + 2));
    for index in [0, 1, 2, 333, 5000, 9999, COUNT] {
        seek(&dir, SeekFrom::Start(all[index].1)).unwrap();
        assert_eq!(listing(&dir), all[index + 1..], "after name {index}");
    }
    // Backwards, in the middle of a listing, and after changes.
    let position = all[4000].1;
    for (name, _) in &all[5000..5500] {
        if name != "." && name != ".." {
            fs::remove_file(sandbox.mountpoint().join(name)).unwrap();
        }
    }
    seek(&dir, SeekFrom::Start(position)).unwrap();
    let left: BTreeSet<_> = listing(&dir).into_iter().map(|(name, _)| name).collect();
    for (name, _) in all[4001..5000].iter().chain(&all[5500..]) {
        assert!(left.contains(name), "{name} was there all the time");
    }
    seek(&dir, SeekFrom::Start(0)).unwrap();
    let gone: BTreeSet<_> = all[5000..5500].iter().map(|(name, _)| name).collect();
    assert!(!listing(&dir).iter().any(|(name, _)| gone.contains(name)));
    drop(dir);
    server.unmount();
}

#[test]
fn a_large_directory_is_removed_while_it_is_listed() {
    let sandbox = Sandbox::new();
    let tree = sandbox.mountpoint().join("tree");
    let server = sandbox.serve(&[]);
    fs::create_dir(&tree).unwrap();
    (0..2000).for_each(|number| drop(File::create(tree.join(number.to_string())).unwrap()));
    fs::remove_dir_all(&tree).unwrap();
    assert_eq!(fs::read_dir(sandbox.source()).unwrap().count(), 0);
    server.unmount();
}
