//! The table on real files. `/dev/shm` and the temporary directory are expected to be
//! of a kind that resolves handles: tmpfs, ext4, XFS, Btrfs.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat};

use super::*;

fn path_fd(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).unwrap()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A table with that many slots in each shard.
fn by_handle(dir: &Path, slots: usize) -> NodeTable {
    let root = path_fd(dir);
    let (lower, handle) = Kernel::probe(&root);
    let handle = handle.expect("these tests need root and a filesystem with handles");
    NodeTable::with(lower, Some(handle), root, slots).unwrap()
}

fn pinning(dir: &Path) -> NodeTable {
    let root = path_fd(dir);
    let (lower, _) = Kernel::probe(&root);
    NodeTable::with(lower, None, root, 1).unwrap()
}

fn both(dir: &Path) -> [NodeTable; 2] {
    let both = [by_handle(dir, 1), pinning(dir)];
    assert_eq!(
        both.each_ref().map(NodeTable::resolves_by_handle),
        [true, false]
    );
    both
}

/// Enters every file and returns their ids.
fn enter_all(table: &NodeTable, files: &[std::path::PathBuf]) -> Vec<NodeId> {
    files
        .iter()
        .map(|file| {
            let (_, stat) = table.enter(path_fd(file)).unwrap();
            table.id_of(stat.st_ino)
        })
        .collect()
}

fn hundreds_of_files(dir: &Path) -> Vec<std::path::PathBuf> {
    (0..500)
        .map(|number| {
            let path = dir.join(format!("{number:03}"));
            std::fs::write(&path, number.to_string()).unwrap();
            path
        })
        .collect()
}

/// Makes files of the same shard: entering them evicts the descriptor of `id`, whatever
/// numbers other processes take meanwhile.
fn crowd(dir: &Path, id: NodeId) -> Vec<std::path::PathBuf> {
    let made = (0..10_000).map(|number| {
        let path = dir.join(format!("crowd-{number}"));
        std::fs::write(&path, "").unwrap();
        path
    });
    let same_shard = |path: &std::path::PathBuf| {
        let ino = fstat(path_fd(path)).unwrap().st_ino;
        ino % SHARDS == id.0 % SHARDS
    };
    let crowd: Vec<_> = made.filter(same_shard).take(3).collect();
    assert_eq!(crowd.len(), 3, "no inode numbers of one shard");
    crowd
}

fn read(node: &Node) -> Vec<u8> {
    std::fs::read(node.magic_link().as_c_str().to_str().unwrap()).unwrap()
}

#[test]
fn counts_are_exact_under_concurrent_lookup_and_forget() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, "").unwrap();
    for table in both(dir.path()) {
        let id = table.id_of(fstat(path_fd(&file)).unwrap().st_ino);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        table.enter(path_fd(&file)).unwrap();
                        table.get(id).expect("known while somebody counts");
                        table.enter(path_fd(&file)).unwrap();
                        table.forget(id, 2);
                    }
                });
            }
        });
        assert_eq!(table.known(), (0, 0));
        assert_eq!(table.get(id).unwrap_err(), Errno::STALE);
    }
}

#[test]
fn inodes_are_found_again_when_their_descriptors_are_evicted() {
    for dir in [tempfile::tempdir(), tempfile::tempdir_in("/dev/shm")] {
        let dir = dir.unwrap();
        let files = hundreds_of_files(dir.path());
        let table = by_handle(dir.path(), 2);
        let before = open_descriptors();
        let ids = enter_all(&table, &files);
        let most = before + 2 * SHARDS as usize;
        assert!(
            open_descriptors() <= most,
            "{} are open",
            open_descriptors()
        );
        for (number, id) in ids.iter().enumerate().rev() {
            assert_eq!(
                read(&table.get(*id).unwrap()),
                number.to_string().into_bytes()
            );
        }
        assert!(
            open_descriptors() <= most,
            "{} are open",
            open_descriptors()
        );
        for id in ids {
            table.forget(id, 1);
        }
        assert_eq!(table.known(), (0, 0));
        assert_eq!(
            open_descriptors(),
            before,
            "forgotten descriptors stay open"
        );
    }
}

#[test]
fn every_kind_of_inode_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    std::fs::create_dir(path("dir")).unwrap();
    std::os::unix::fs::symlink("/nowhere", path("link")).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(CWD, path("fifo"), FileType::Fifo, mode, 0).unwrap();
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, path("null"), FileType::CharacterDevice, mode, null).unwrap();
    rustix::fs::mknodat(CWD, path("socket"), FileType::Socket, mode, 0).unwrap();
    let table = by_handle(dir.path(), 1);
    let names = ["dir", "link", "fifo", "null", "socket"];
    let entered = names.map(|name| table.enter(path_fd(&path(name))).unwrap().1);
    hundreds_of_files(dir.path())
        .iter()
        .for_each(|file| drop(table.enter(path_fd(file)).unwrap()));
    for (name, stat) in names.iter().zip(entered) {
        let node = table.get(table.id_of(stat.st_ino)).unwrap();
        let again = fstat(&*node).unwrap();
        assert_eq!(
            (again.st_ino, again.st_mode),
            (stat.st_ino, stat.st_mode),
            "{name}"
        );
        let kind = table.kind(table.id_of(stat.st_ino));
        assert_eq!(kind, Ok(FileType::from_raw_mode(stat.st_mode)), "{name}");
    }
}

#[test]
fn an_inode_without_a_name_stays_within_reach() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    for table in both(dir.path()) {
        std::fs::write(&file, "old").unwrap();
        let (_, stat) = table.enter(path_fd(&file)).unwrap();
        let id = table.id_of(stat.st_ino);
        let crowd = crowd(dir.path(), id);
        let victim = path_fd(&file);
        std::fs::remove_file(&file).unwrap();
        table.name_removed(victim);
        enter_all(&table, &crowd);
        assert_eq!(read(&table.get(id).unwrap()), b"old");
        let before = open_descriptors();
        table.forget(id, 1);
        assert_eq!(open_descriptors(), before - 1);
        assert_eq!(table.get(id).unwrap_err(), Errno::STALE);
    }
}

#[test]
fn an_inode_that_loses_its_name_unseen_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, "old").unwrap();
    let table = by_handle(dir.path(), 1);
    let (_, stat) = table.enter(path_fd(&file)).unwrap();
    let id = table.id_of(stat.st_ino);
    let crowd = crowd(dir.path(), id);
    // Behind the mount's back.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(read(&table.get(id).unwrap()), b"old");
    enter_all(&table, &crowd);
    assert_eq!(table.get(id).unwrap_err(), Errno::STALE);
}

#[test]
fn an_unnamed_inode_is_pinned_until_it_gets_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let files = hundreds_of_files(dir.path());
    let table = by_handle(dir.path(), 1);
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let unnamed = openat(CWD, dir.path(), flags, Mode::from_raw_mode(0o600)).unwrap();
    rustix::io::write(&unnamed, b"unnamed").unwrap();
    let link = super::super::MagicLink::of(&unnamed);
    let held = openat(CWD, link.as_c_str(), OFlags::PATH, Mode::empty()).unwrap();
    let (_, stat) = table.enter(held).unwrap();
    let id = table.id_of(stat.st_ino);
    drop(unnamed);
    let ids = enter_all(&table, &files);
    let node = table.get(id).unwrap();
    assert_eq!(read(&node), b"unnamed");
    let name = dir.path().join("named");
    let follow = rustix::fs::AtFlags::SYMLINK_FOLLOW;
    rustix::fs::linkat(CWD, node.magic_link().as_c_str(), CWD, &name, follow).unwrap();
    table.name_given(id, &node);
    drop(node);
    // Now it is evicted like any other, and found again.
    let before = open_descriptors();
    for id in ids {
        table.get(id).unwrap();
    }
    assert_eq!(open_descriptors(), before);
    assert_eq!(read(&table.get(id).unwrap()), b"unnamed");
}

#[test]
fn the_generation_is_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, "").unwrap();
    let generation = |table: NodeTable| table.enter(path_fd(&file)).unwrap().0.generation();
    let [first, second] = both(dir.path()).map(generation);
    assert_eq!(first, second);
    assert_eq!(generation(by_handle(dir.path(), 1)), first);
}

#[test]
fn the_root_is_one_and_another_device_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let table = by_handle(dir.path(), 1);
    let root_ino = fstat(path_fd(dir.path())).unwrap().st_ino;
    assert_eq!(table.id_of(root_ino), NodeId::ROOT);
    assert_eq!(table.id_of(1), NodeId(root_ino));
    assert_eq!(table.id_of(12_345_678), NodeId(12_345_678));
    table.forget(NodeId::ROOT, 1_000_000);
    table.get(NodeId::ROOT).unwrap();
    let proc = path_fd(Path::new("/proc/version"));
    assert_eq!(table.enter(proc).unwrap_err(), Errno::XDEV);
}

#[test]
fn a_filesystem_that_may_lose_handles_is_not_resolved_by_them() {
    let table = NodeTable::new(path_fd(Path::new("/proc/sys"))).unwrap();
    assert!(!table.resolves_by_handle());
    let (_node, stat) = table
        .enter(path_fd(Path::new("/proc/sys/kernel/ostype")))
        .unwrap();
    let id = table.id_of(stat.st_ino);
    assert_eq!(table.kind(id), Ok(FileType::RegularFile));
    table.get(id).unwrap();
}

/// A filesystem with every inode number, each a regular file with ext4's handle.
struct Endless(Stat);

impl Lower for Endless {
    type Fd = u64;

    fn stat(&self, ino: &u64) -> Result<Stat> {
        let mut stat = self.0;
        stat.st_ino = *ino;
        if *ino != 2 {
            stat.st_mode = libc::S_IFREG | 0o644;
        }
        Ok(stat)
    }

    fn name_to_handle(&self, ino: &u64) -> Result<FileHandle> {
        let number = (*ino as u32).to_ne_bytes();
        Ok(FileHandle::new(1, &[&number, &[7; 4]]))
    }

    /// Names are numbers.
    fn handle_at(&self, _dir: &u64, name: &OsStr) -> Result<Option<FileHandle>> {
        self.name_to_handle(&number(name)).map(Some)
    }

    fn stat_at(&self, _dir: &u64, name: &OsStr) -> Result<Stat> {
        self.stat(&number(name))
    }

    fn open_by_handle(&self, handle: &FileHandle) -> Result<u64> {
        Ok(u32::from_ne_bytes(handle.bytes()[..4].try_into().unwrap()).into())
    }
}

fn number(name: &OsStr) -> u64 {
    name.to_str().unwrap().parse().unwrap()
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    resident * rustix::param::page_size()
}

#[test]
fn a_million_known_inodes_take_less_than_80_bytes_each() {
    const MILLION: u64 = 1_000_000;
    let lower = Endless(fstat(path_fd(Path::new("/"))).unwrap());
    let handle = lower.name_to_handle(&2).unwrap();
    let table = NodeTable::with(lower, Some(handle), 2, SLOTS as usize).unwrap();
    let before = resident_bytes();
    for ino in 3..MILLION + 3 {
        table.enter(ino).unwrap();
    }
    let each = (resident_bytes() - before) as u64 / MILLION;
    println!("{each} bytes for each known inode");
    assert_eq!(table.known(), (MILLION as usize, MILLION));
    // Less than an entry would mean that this measures nothing.
    assert!((24..80).contains(&each), "{each} bytes");
    for ino in 3..MILLION + 3 {
        table.forget(NodeId(ino), 1);
    }
    assert_eq!(table.known(), (0, 0));
}

#[test]
fn what_was_just_made_is_counted_and_no_descriptor_kept() {
    let dir = tempfile::tempdir().unwrap();
    let table = NodeTable::new(path_fd(dir.path())).unwrap();
    let made = OwnedFd::from(std::fs::File::create_new(dir.path().join("f")).unwrap());
    let (generation, stat) = table.enter_made(&made).unwrap().unwrap();
    let id = table.id_of(stat.st_ino);
    assert_eq!(table.known(), (1, 1));
    // A lookup finds the same inode, by its handle alone.
    drop(made);
    let (found, _) = table.enter(path_fd(&dir.path().join("f"))).unwrap();
    assert_eq!((found.generation(), table.known()), (generation, (1, 2)));
    table.open(id, OFlags::RDWR).unwrap();
    table.forget(id, 2);
    assert_eq!(table.open(id, OFlags::RDWR).unwrap_err(), Errno::STALE);
}
