//! On images that the host's mkfs made of a tree: where on the disk a file's bytes are is known
//! by looking for them.

use std::{fs, path::Path, time::Duration};

use plugpull_vm::process::Cmd;

use super::*;

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// A filesystem with two files, `/work/a` of many blocks and `/work/d/b` of three.
struct Image {
    dir: tempfile::TempDir,
    fs: Fs,
    disk: Vec<u8>,
}

impl Image {
    fn make(fs: Fs, size: u64, mkfs: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("work/d")).expect("made");
        for (name, bytes) in [("work/a", 300_000), ("work/d/b", 10_000)] {
            let content: Vec<u8> = std::iter::repeat_with({
                let mut random = fastrand::Rng::with_seed(bytes as u64);
                move || random.u8(1..)
            })
            .take(bytes)
            .collect();
            fs::write(tree.join(name), content).expect("written");
        }
        let proto = "/dev/null\n0 0\nd--755 0 0\nwork d--755 0 0\na ---644 0 0 tree/work/a\n\
                     d d--755 0 0\nb ---644 0 0 tree/work/d/b\n$\n$\n$\n";
        fs::write(dir.path().join("proto"), proto).expect("written");
        let path = dir.path().join("image");
        let file = fs::File::create(&path).expect("made");
        file.set_len(size).expect("sized");
        let script = format!("PATH=$PATH:/sbin:/usr/sbin; {mkfs}");
        let mkfs = Cmd::new("sh").args(["-c", &script]).dir(dir.path());
        mkfs.run(DEADLINE).expect("mkfs works");
        let disk = fs::read(&path).expect("read");
        Self { dir, fs, disk }
    }

    fn owners(&self, place: Range<u64>) -> Vec<Named> {
        let image = self.dir.path().join("image");
        let mut tool = |script: &str| run(script, &image);
        let places = std::slice::from_ref(&place);
        let mut named = owners(self.fs, places, &mut tool).expect("the tools know");
        assert_eq!(named.len(), 1);
        named.remove(0)
    }

    /// Where on the disk these bytes of a file are.
    fn place(&self, name: &str, from: usize) -> u64 {
        let content = fs::read(self.dir.path().join("tree").join(name)).expect("read");
        let wanted = &content[from..from + 512];
        let sectors = self.disk.chunks_exact(512);
        let found: Vec<_> = sectors
            .enumerate()
            .filter(|(_, sector)| *sector == wanted)
            .collect();
        assert_eq!(found.len(), 1, "{name} from byte {from} on");
        found[0].0 as u64 * 512
    }

    /// Content is found by its place, and by no other.
    fn knows_its_files(&self) {
        for (name, from) in [
            ("work/a", 0),
            ("work/a", 512),
            ("work/a", 200_704),
            ("work/d/b", 0),
            ("work/d/b", 8192),
        ] {
            let place = self.place(name, from);
            let named = self.owners(place..place + 512);
            let [Named { owner, .. }] = &named[..] else {
                panic!("one owner of 512 bytes: {named:?}");
            };
            let Owner::File { path, at, .. } = owner else {
                panic!("{name} from byte {from} on is {owner:?}");
            };
            assert_eq!((path.as_str(), *at), (&*format!("/{name}"), from as u64));
        }
        // A write of several blocks is one piece, and what lies behind the file another's.
        let place = self.place("work/a", 0);
        let run = self.place("work/a", 40_960) - place;
        assert_eq!(run, 40_960, "the file lies in one run");
        let named = &self.owners(place..place + 40_960);
        assert_eq!(told(named), ["/work/a, bytes 0 to 40960"]);
        let nobody = self.disk.len() as u64 - 3 * MIB / 2;
        assert_eq!(told(&self.owners(nobody..nobody + 4096)), ["free space"]);
        let torn = self.place("work/d/b", 8192);
        let beyond = &self.owners(torn..torn + 8192);
        assert_eq!(told(beyond)[0], "/work/d/b, bytes 8192 to 12288");
        assert_eq!(beyond.len(), 2, "{beyond:?}");
    }

    /// What these bytes are.
    fn at(&self, place: Range<u64>) -> Vec<String> {
        told(&self.owners(place))
    }
}

fn run(script: &str, image: &Path) -> Result<String> {
    let script = format!("PATH=$PATH:/sbin:/usr/sbin; {script}");
    let tool = Cmd::new("sh").args(["-c", &script, "sh"]).arg(image);
    Ok(tool.run(DEADLINE)?.stdout_text())
}

fn told(named: &[Named]) -> Vec<String> {
    named.iter().map(ToString::to_string).collect()
}

#[test]
fn ext4_is_known_by_its_own_tools() {
    let image = Image::make(Fs::Ext4, 64 * MIB, "mkfs.ext4 -q -F -b 4096 -d tree image");
    image.knows_its_files();
    assert_eq!(image.at(1024..2048), ["superblock"]);
    assert_eq!(image.at(4096..8192), ["group descriptors of group 0"]);
    // The journal's superblock begins with the number of its format (jbd2.h).
    let journal = [0xc0, 0x3b, 0x39, 0x98];
    let blocks = image.disk.chunks_exact(4096);
    let found: Vec<_> = blocks
        .enumerate()
        .filter(|(_, block)| block.starts_with(&journal))
        .collect();
    let journal = found[0].0 as u64 * 4096;
    assert_eq!(image.at(journal..journal + 8192), ["journal"]);
    // The inode of a file has its size at byte 4 (ext4.h, `struct ext4_inode`).
    let size = 300_000u32.to_le_bytes();
    let inodes = image.disk.chunks_exact(256);
    let found: Vec<_> = inodes
        .enumerate()
        .filter(|(_, inode)| inode[4..8] == size && inode[0..2] == [0xa4, 0x81])
        .collect();
    let inode = found[0].0 as u64 * 256;
    let of = image.at(inode - inode % 4096..inode - inode % 4096 + 4096);
    let [of] = &of[..] else { panic!("{of:?}") };
    assert!(of.starts_with("inode table, inodes "), "{of}");
    assert!(of.contains("/work/a"), "{of}");
    // A directory's block holds the names in it.
    let blocks = image.disk.chunks_exact(4096);
    let entry = [1, 1, b'b', 0];
    let found: Vec<_> = blocks
        .enumerate()
        .filter(|(_, block)| block[12..].starts_with(&[2, 0, 0, 0]) || block[30..34] == entry)
        .collect();
    let dirs: Vec<String> = found
        .iter()
        .map(|(at, _)| image.at(*at as u64 * 4096..*at as u64 * 4096 + 4096)[0].clone())
        .collect();
    let of = |path: &str| {
        dirs.iter()
            .any(|dir| dir.starts_with(&format!("directory {path},")))
    };
    assert!(of("/work/d"), "{dirs:?}");
}

#[test]
fn xfs_is_known_by_its_own_tools() {
    let image = Image::make(Fs::Xfs, 320 * MIB, "mkfs.xfs -q -f -p proto image");
    image.knows_its_files();
    assert_eq!(image.at(0..512), ["superblock of group 0"]);
    let second = image.disk.chunks_exact(512).skip(1);
    let second = second
        .enumerate()
        .find(|(_, sector)| sector.starts_with(b"XFSB"));
    let group = (second.expect("a second group").0 as u64 + 1) * 512;
    assert_eq!(
        image.at(group..group + 2048),
        ["superblock, free space header, inode header, free list of group 1"]
    );
    // A record of the log begins with the number of its format (xfs_log_format.h).
    let record = [0xfe, 0xed, 0xba, 0xbe];
    let sectors = image.disk.chunks_exact(512).enumerate();
    let found = sectors
        .clone()
        .find(|(_, sector)| sector.starts_with(&record));
    let log = found.expect("a record").0 as u64 * 512;
    assert_eq!(image.at(log..log + 4096), ["log"]);
    let is_inode =
        |sector: &[u8]| sector.starts_with(b"IN") && sector[56..64] == 300_000u64.to_be_bytes();
    let found = sectors.clone().find(|(_, sector)| is_inode(sector));
    let inode = found.expect("the inode of /work/a").0 as u64 * 512;
    let of = image.at(inode..inode + 512);
    assert!(of[0].starts_with("inode chunk, inodes "), "{of:?}");
    assert!(of[0].contains("/work/a"), "{of:?}");
}

#[test]
fn btrfs_is_known_by_its_own_tools() {
    let mkfs = "mkfs.btrfs -q -f --rootdir tree image";
    let image = Image::make(Fs::Btrfs, 128 * MIB, mkfs);
    image.knows_its_files();
    assert_eq!(image.at(64 << 10..68 << 10), ["superblock"]);
    // A tree's block says at byte 88 whose it is (btrfs_tree.h, `struct btrfs_header`): both
    // copies of the fs tree's leaf, which holds the names.
    let blocks = image.disk.chunks_exact(16384).enumerate();
    let is_leaf = |block: &[u8]| {
        block[88..96] == 5u64.to_le_bytes()
            && block[100] == 0
            && block.windows(4).any(|bytes| bytes == b"work")
    };
    let leaves: Vec<_> = blocks.filter(|(_, block)| is_leaf(block)).collect();
    assert_eq!(leaves.len(), 2);
    for (leaf, _) in leaves {
        let of = image.at(leaf as u64 * 16384..leaf as u64 * 16384 + 16384);
        assert!(
            of[0].starts_with("leaf of the fs tree, generation "),
            "{of:?}"
        );
        assert_eq!(of.len(), 1, "{of:?}");
    }
}
