//! Requests that would lead out of the source, as no kernel makes them: names that walk,
//! nodes that were guessed, special files, and mounts below the source.

use crate::kernel::Kernel;
use crate::{CREATE, LISTXATTR, LOOKUP, MKDIR, create, words};

const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKNOD: u32 = 8;
const UNLINK: u32 = 10;
const RMDIR: u32 = 11;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const OPENDIR: u32 = 27;
const RENAME2: u32 = 45;
const TMPFILE: u32 = 51;

/// A request with `words` of 32 bits, then names.
fn named(words: &[u32], names: &[&str]) -> Vec<u8> {
    let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    for name in names {
        body.extend(format!("{name}\0").bytes());
    }
    body
}

#[test]
fn names_that_walk_are_refused_by_everything_that_takes_a_name() {
    let mut kernel = Kernel::with_server();
    let (node, _) = create(&mut kernel, "f");
    let [low, high] = [node as u32, (node >> 32) as u32];
    let fifo = libc::S_IFIFO | 0o644;
    let rdwr = libc::O_RDWR.cast_unsigned();
    for bad in ["..", ".", "", "a/b", "f/", "/etc", "../../etc/passwd"] {
        let root = 1;
        for (opcode, body) in [
            (SYMLINK, named(&[], &[bad, "target"])),
            (MKNOD, named(&[fifo, 0, 0, 0], &[bad])),
            (UNLINK, named(&[], &[bad])),
            (RMDIR, named(&[], &[bad])),
            (RENAME, named(&[root, 0], &[bad, "new"])),
            (RENAME, named(&[root, 0], &["f", bad])),
            (RENAME2, named(&[root, 0, 0, 0], &[bad, "new"])),
            (RENAME2, named(&[root, 0, 0, 0], &["f", bad])),
            (RENAME2, named(&[root, 0, 2, 0], &["f", bad])),
            (LINK, named(&[low, high], &[bad])),
            (CREATE, named(&[rdwr, 0o100_644, 0, 0], &[bad])),
        ] {
            let answer = kernel.ask(opcode, 1, &body).unwrap();
            assert_eq!(answer.errno, libc::EINVAL, "{bad:?} by {opcode}");
        }
    }
    // Control: with a name of one component each of them is done.
    for (opcode, body) in [
        (SYMLINK, named(&[], &["s", "../../target"])),
        (MKNOD, named(&[fifo, 0, 0, 0], &["p"])),
        (LINK, named(&[low, high], &["l"])),
        (RENAME, named(&[1, 0], &["l", "m"])),
        (RENAME2, named(&[1, 0, 2, 0], &["m", "s"])),
        (UNLINK, named(&[], &["s"])),
        (CREATE, named(&[rdwr, 0o100_644, 0, 0], &["c"])),
    ] {
        assert_eq!(kernel.ask(opcode, 1, &body).unwrap().errno, 0, "{opcode}");
    }
}

/// The name that the kernel sends with TMPFILE is of no account: the file has none.
#[test]
fn a_nameless_file_gets_no_name_from_its_request() {
    let mut kernel = Kernel::with_server();
    let rdwr = libc::O_RDWR.cast_unsigned();
    for bad in ["..", "a/b", "/etc/made", "made"] {
        let body = named(&[rdwr, 0o100_644, 0, 0], &[bad]);
        let answer = kernel.ask(TMPFILE, 1, &body).unwrap();
        assert_eq!(answer.errno, 0, "{bad}");
        assert_eq!(link_count(&answer.body), 0, "{bad}");
    }
    let made = kernel.ask(LOOKUP, 1, b"made\0").unwrap();
    // No node: there is no such name.
    assert_eq!((made.errno, &made.body[..8]), (0, &[0; 8][..]));
}

/// `nlink` of the attributes in an entry (include/uapi/linux/fuse.h).
fn link_count(entry: &[u8]) -> u32 {
    let at = 40 + 64;
    u32::from_ne_bytes(entry[at..at + 4].try_into().unwrap())
}

/// A node id is an inode number, and any inode of the filesystem below could be opened
/// by its number and generation: only what was looked up is.
#[test]
fn a_node_that_was_never_looked_up_is_not_found() {
    let mut kernel = Kernel::with_server();
    let made = kernel.ask(MKDIR, 1, &named(&[0o755, 0], &["d"])).unwrap();
    let known = u64::from_ne_bytes(made.body[..8].try_into().unwrap());
    let hidden = kernel.dir().join("hidden");
    std::fs::create_dir(&hidden).unwrap();
    std::fs::write(hidden.join("f"), "").unwrap();
    let unknown = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&hidden).unwrap());
    let ask = |kernel: &mut Kernel, node: u64| {
        let attributes = [words(&[0, 1 << 32]), vec![0; 72]].concat();
        [
            (GETATTR, words(&[0, 0])),
            (SETATTR, attributes),
            (LOOKUP, named(&[], &["f"])),
            (MKDIR, named(&[0o755, 0], &["new"])),
            (OPENDIR, words(&[0])),
            (LISTXATTR, words(&[0])),
        ]
        .map(|(opcode, body)| kernel.ask(opcode, node, &body).unwrap().errno)
    };
    assert_eq!(ask(&mut kernel, unknown), [libc::ESTALE; 6]);
    for guessed in [0, unknown + 1, u64::MAX] {
        assert_eq!(ask(&mut kernel, guessed), [libc::ESTALE; 6], "{guessed}");
    }
    // As the target of a rename or a link too.
    let [low, high] = [unknown as u32, (unknown >> 32) as u32];
    let rename = named(&[low, high], &["d", "stolen"]);
    assert_eq!(kernel.ask(RENAME, 1, &rename).unwrap().errno, libc::ESTALE);
    let link = named(&[low, high], &["stolen"]);
    assert_eq!(kernel.ask(LINK, 1, &link).unwrap().errno, libc::ESTALE);
    // Control: looked up, it is found, as one that was made is.
    assert_eq!(ask(&mut kernel, known)[0], 0);
    assert_eq!(kernel.ask(LOOKUP, 1, b"hidden\0").unwrap().errno, 0);
    assert_eq!(ask(&mut kernel, unknown), [0; 6]);
}

/// A mount below the source is asked for although the kernel would not: by name, by
/// the listing and as where something is to be made.
#[test]
fn what_is_mounted_below_is_refused_by_its_name() {
    let mut kernel = Kernel::with_server();
    let below = kernel.dir().join("below");
    std::fs::create_dir(&below).unwrap();
    let empty = rustix::mount::MountFlags::empty();
    rustix::mount::mount("below", &below, "tmpfs", empty, None).unwrap();
    std::fs::write(below.join("secret"), "secret").unwrap();
    kernel.ask(MKDIR, 1, &named(&[0o755, 0], &["d"])).unwrap();
    for (opcode, body, expected) in [
        (LOOKUP, named(&[], &["below"]), libc::EXDEV),
        (RMDIR, named(&[], &["below"]), libc::EBUSY),
        (MKDIR, named(&[0o755, 0], &["below"]), libc::EEXIST),
        (RENAME, named(&[1, 0], &["below", "d"]), libc::EBUSY),
        (RENAME, named(&[1, 0], &["d", "below"]), libc::EBUSY),
        (RENAME2, named(&[1, 0, 2, 0], &["d", "below"]), libc::EBUSY),
    ] {
        let answer = kernel.ask(opcode, 1, &body).unwrap();
        assert_eq!(answer.errno, expected, "{opcode}");
    }
    assert!(below.join("secret").exists());
}

#[test]
fn special_files_are_not_opened() {
    let mut kernel = Kernel::with_server();
    let zero = (1 << 8) | 5;
    let entries = [
        (MKNOD, named(&[libc::S_IFIFO | 0o644, 0, 0, 0], &["p"])),
        (MKNOD, named(&[libc::S_IFCHR | 0o644, zero, 0, 0], &["c"])),
        (MKNOD, named(&[libc::S_IFSOCK | 0o644, 0, 0, 0], &["s"])),
        (SYMLINK, named(&[], &["l", "/dev/zero"])),
    ];
    for (opcode, body) in entries {
        let made = kernel.ask(opcode, 1, &body).unwrap();
        let node = u64::from_ne_bytes(made.body[..8].try_into().unwrap());
        for flags in [libc::O_RDONLY, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDWR] {
            let open = named(&[flags.cast_unsigned(), 0], &[]);
            let answer = kernel.ask(OPEN, node, &open).unwrap();
            assert_eq!(answer.errno, libc::ENXIO, "{flags:o}");
        }
        let opendir = kernel.ask(OPENDIR, node, &words(&[0])).unwrap();
        assert_eq!(opendir.errno, libc::ENOTDIR);
    }
    // Control: a regular file is opened.
    let (node, _) = create(&mut kernel, "f");
    assert_eq!(kernel.ask(OPEN, node, &words(&[0])).unwrap().errno, 0);
}

/// The kernel asks for no other size of what is not a regular file (truncate(2)); opened
/// for it, a fifo would hold the thread until it has a reader, and a device would act.
#[test]
fn a_special_file_is_not_opened_to_change_its_size() {
    let mut kernel = Kernel::with_server();
    let zero = (1 << 8) | 5;
    for (name, mode, device) in [("p", libc::S_IFIFO, 0), ("c", libc::S_IFCHR, zero)] {
        let body = named(&[mode | 0o644, device, 0, 0], &[name]);
        let made = kernel.ask(MKNOD, 1, &body).unwrap();
        let node = u64::from_ne_bytes(made.body[..8].try_into().unwrap());
        // FATTR_SIZE.
        let size = [words(&[8]), vec![0; 80]].concat();
        let answer = kernel.ask(SETATTR, node, &size).unwrap();
        assert_eq!(answer.errno, libc::EINVAL, "{name}");
    }
}
