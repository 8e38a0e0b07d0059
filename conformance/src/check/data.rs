//! Contents: large and sparse files, flags of descriptors and of single writes, mappings,
//! copies, files without names.

use std::fs;
use std::io::{IoSlice, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::Result;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, SeekFrom, copy_file_range, fallocate, fcntl_getfl,
    fcntl_setfl, linkat, open, openat, seek,
};
use rustix::io::{Errno, ReadWriteFlags, pread, pwrite, pwritev2};

use super::Line;
use super::scene::{Scene, code};
use crate::sys::Mapping;

pub(super) const CHECKS: &[Line] = &[
    (
        "sparse-over-4-gib",
        "A file of over 4 GiB keeps its holes: SEEK_DATA and SEEK_HOLE find them, reads show zeros.",
        sparse,
    ),
    (
        "append-by-setfl",
        "O_APPEND set and cleared by fcntl(2) on an open handle decides where writes go.",
        append_by_setfl,
    ),
    (
        "append-on-two-handles",
        "Appends through two descriptors never overwrite each other.",
        append_twice,
    ),
    (
        "sync-flags",
        "O_SYNC and O_DSYNC are reported, F_SETFL cannot change them, and writes under them succeed.",
        sync_flags,
    ),
    (
        "write-flags",
        "RWF_DSYNC, RWF_SYNC and RWF_APPEND are taken per write; unknown flags are refused.",
        write_flags,
    ),
    (
        "mmap-coherence",
        "Shared mappings, reads and writes see each other at once, across handles.",
        mappings,
    ),
    (
        "mmap-private",
        "A private mapping never changes the file.",
        private_mapping,
    ),
    (
        "mmap-beyond-the-end",
        "A mapped page beyond the file's end faults, and works once the file has grown.",
        beyond_the_end,
    ),
    (
        "copy-file-range",
        "copy_file_range(2) copies within and between files, and refuses overlaps.",
        copy,
    ),
    (
        "fallocate-modes",
        "Allocation, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE do what they say; other modes are refused as a whole.",
        allocate,
    ),
    (
        "tmpfile",
        "O_TMPFILE makes a file without a name; linkat(2) gives it one, unless O_EXCL forbade that.",
        tmpfile,
    ),
    (
        "truncate-on-open",
        "O_TRUNC empties for every handle, and truncation of an open file is seen by all.",
        truncate_on_open,
    ),
    (
        "direct-unaligned",
        "O_DIRECT takes aligned requests, takes or refuses others as below, and moves the right bytes.",
        unaligned,
    ),
    (
        "read-beyond-the-end",
        "Reads at and after the end give nothing, and a hole made by a late write reads as zeros.",
        beyond,
    ),
    (
        "largest-file",
        "A write that would pass the largest size is EFBIG, and a negative length is EINVAL.",
        largest,
    ),
];

fn sparse(scene: &Scene) -> Result<()> {
    const FAR: u64 = (5 << 30) + 4096;
    let file = scene.file("f", b"")?;
    file.write_all_at(&[1; 4096], 0)?;
    file.write_all_at(&[2; 4096], FAR)?;
    file.sync_all()?;
    scene.expect("size", file.metadata()?.len(), FAR + 4096);
    let at = |from: SeekFrom| seek(&file, from);
    scene.expect("data at 0", at(SeekFrom::Data(0)), Ok::<_, Errno>(0));
    scene.expect("hole from 0", at(SeekFrom::Hole(0)), Ok::<_, Errno>(4096));
    scene.expect(
        "data from 4096",
        at(SeekFrom::Data(4096)),
        Ok::<_, Errno>(FAR),
    );
    scene.expect(
        "hole at the end",
        at(SeekFrom::Hole(FAR)),
        Ok::<_, Errno>(FAR + 4096),
    );
    scene.expect(
        "data at the end",
        at(SeekFrom::Data(FAR + 4096)),
        Err::<u64, _>(Errno::NXIO),
    );
    let mut bytes = [9; 8192];
    file.read_exact_at(&mut bytes, (4 << 30) - 4096)?;
    scene.expect(
        "zeros across 4 GiB",
        bytes.iter().all(|byte| *byte == 0),
        true,
    );
    file.read_exact_at(&mut bytes, FAR - 4096)?;
    scene.expect("data after the hole", (bytes[4095], bytes[4096]), (0, 2));
    scene.expect("few blocks", file.metadata()?.blocks() < 100, true);
    file.set_len((4 << 30) + 1)?;
    scene.expect("cut", file.metadata()?.len(), (4u64 << 30) + 1);
    Ok(())
}

fn append_by_setfl(scene: &Scene) -> Result<()> {
    let mut file = scene.file("f", b"0123456789")?;
    file.seek(std::io::SeekFrom::Start(0))?;
    fcntl_setfl(&file, OFlags::APPEND)?;
    file.write_all(b"ab")?;
    scene.expect("appended", fs::read(scene.path("f"))?, b"0123456789ab");
    // pwrite(2), BUGS: on Linux the offset is ignored with O_APPEND.
    pwrite(&file, b"cd", 0)?;
    scene.expect(
        "pwrite appended",
        fs::read(scene.path("f"))?,
        b"0123456789abcd",
    );
    fcntl_setfl(&file, OFlags::empty())?;
    pwrite(&file, b"XY", 0)?;
    scene.expect("no longer", fs::read(scene.path("f"))?, b"XY23456789abcd");
    let mut appending = scene.open("f", libc::O_APPEND)?;
    fcntl_setfl(&appending, OFlags::empty())?;
    appending.write_all(b"Z")?;
    scene.expect("cleared", fs::read(scene.path("f"))?, b"ZY23456789abcd");
    Ok(())
}

fn append_twice(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"")?);
    let mut first = scene.open("f", libc::O_APPEND)?;
    let mut second = scene.open("f", libc::O_APPEND)?;
    for _ in 0..50 {
        first.write_all(b"one\n")?;
        second.write_all(b"three\n")?;
    }
    let text = fs::read_to_string(scene.path("f"))?;
    scene.expect("contents", text == "one\nthree\n".repeat(50), true);
    scene.expect("position", first.stream_position()?, 494);
    Ok(())
}

fn sync_flags(scene: &Scene) -> Result<()> {
    drop(scene.file("f", b"")?);
    for (name, flag) in [("O_SYNC", OFlags::SYNC), ("O_DSYNC", OFlags::DSYNC)] {
        let raw = if name == "O_SYNC" {
            libc::O_SYNC
        } else {
            libc::O_DSYNC
        };
        let file = scene.open("f", raw)?;
        let reported = fcntl_getfl(&file)?.bits() & 0o4_010_000;
        scene.expect(format!("{name} reported"), reported, raw.cast_unsigned());
        file.write_all_at(b"synced", 0)?;
        fcntl_setfl(&file, OFlags::APPEND)?;
        let reported = fcntl_getfl(&file)?.bits() & 0o4_010_000;
        scene.expect(
            format!("{name} after F_SETFL"),
            reported,
            raw.cast_unsigned(),
        );
        file.write_all_at(b"more", 0)?;
        scene.see(format!("{flag:?} size"), file.metadata()?.len());
    }
    let file = scene.open("f", 0)?;
    fcntl_setfl(&file, OFlags::SYNC)?;
    scene.expect(
        "not set by F_SETFL",
        fcntl_getfl(&file)?.bits() & 0o4_010_000,
        0,
    );
    Ok(())
}

fn write_flags(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"0123")?;
    let write = |bytes: &[u8], at, flags| pwritev2(&file, &[IoSlice::new(bytes)], at, flags);
    scene.expect(
        "RWF_DSYNC",
        write(b"a", 1, ReadWriteFlags::DSYNC),
        Ok::<_, Errno>(1),
    );
    scene.expect(
        "RWF_SYNC",
        write(b"b", 2, ReadWriteFlags::SYNC),
        Ok::<_, Errno>(1),
    );
    scene.expect(
        "RWF_APPEND",
        write(b"c", 0, ReadWriteFlags::APPEND),
        Ok::<_, Errno>(1),
    );
    let unknown = ReadWriteFlags::from_bits_retain(1 << 30);
    scene.expect(
        "unknown",
        write(b"d", 0, unknown),
        Err::<usize, _>(Errno::OPNOTSUPP),
    );
    scene.expect("contents", fs::read(scene.path("f"))?, b"0ab3c");
    Ok(())
}

fn mappings(scene: &Scene) -> Result<()> {
    let file = scene.file("f", &[b'.'; 8192])?;
    let other = scene.open("f", 0)?;
    let map = Mapping::new(file.as_fd(), true, true, 0, 8192)?;
    let second = Mapping::new(other.as_fd(), true, true, 4096, 4096)?;
    let read = |at: u64| -> Result<String> {
        let mut bytes = [0; 6];
        other.read_exact_at(&mut bytes, at)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    map.write(10, b"mapped")?;
    scene.expect("store, then read(2)", read(10)?, "mapped");
    other.write_all_at(b"writte", 20)?;
    scene.expect("write(2), then load", map.read(20, 6)?, b"writte");
    map.write(5000, b"shared")?;
    scene.expect(
        "store, then load elsewhere",
        second.read(904, 6)?,
        b"shared",
    );
    second.sync()?;
    map.sync()?;
    scene.expect("after msync", read(5000)?, "shared");
    scene.expect(
        "by name",
        &fs::read(scene.path("f"))?[5000..5006],
        b"shared",
    );
    // Unsynchronised stores outlive the mapping.
    map.write(30, b"unsync")?;
    drop((map, second));
    scene.expect("after munmap", read(30)?, "unsync");
    Ok(())
}

fn private_mapping(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"original")?;
    let map = Mapping::new(file.as_fd(), false, true, 0, 4096)?;
    map.write(0, b"PRIVATE!")?;
    scene.expect("the mapping", map.read(0, 8)?, b"PRIVATE!");
    drop(map);
    scene.expect("the file", fs::read(scene.path("f"))?, b"original");
    Ok(())
}

fn beyond_the_end(scene: &Scene) -> Result<()> {
    let file = scene.file("f", &[1; 100])?;
    let map = Mapping::new(file.as_fd(), true, true, 0, 12_288)?;
    scene.expect(
        "second page",
        map.read(4096, 1),
        Err::<Vec<u8>, _>(Errno::FAULT),
    );
    scene.expect(
        "store to it",
        map.write(4096, b"x"),
        Err::<usize, _>(Errno::FAULT),
    );
    file.set_len(8192)?;
    scene.expect("grown", map.read(4096, 1), Ok::<_, Errno>(vec![0]));
    scene.expect("after the old end", map.read(100, 3)?, [0, 0, 0]);
    map.write(4096, b"stored")?;
    file.set_len(4097)?;
    file.set_len(8192)?;
    scene.expect(
        "cut off bytes are zeros",
        map.read(4096, 6)?,
        b"s\0\0\0\0\0",
    );
    Ok(())
}

fn copy(scene: &Scene) -> Result<()> {
    let from = scene.file("from", &crate::world::data(300_000, 1))?;
    let to = scene.file("to", b"")?;
    let copied = copy_file_range(&from, Some(&mut 1000), &to, Some(&mut 5), 200_000);
    scene.expect("copied", copied, Ok::<_, Errno>(200_000));
    let bytes = fs::read(scene.path("to"))?;
    let expected = &crate::world::data(300_000, 1)[1000..201_000];
    scene.expect(
        "contents",
        bytes[5..] == *expected && bytes[..5] == [0; 5],
        true,
    );
    let (mut past, mut zero) = (300_000, 0);
    let at_end = copy_file_range(&from, Some(&mut past), &to, Some(&mut zero), 10);
    scene.expect("at the end", at_end, Ok::<_, Errno>(0));
    let short = copy_file_range(&from, Some(&mut 299_990), &to, Some(&mut 0), 100);
    scene.expect("across the end", short, Ok::<_, Errno>(10));
    let overlap = copy_file_range(&from, Some(&mut 0), &from, Some(&mut 10), 100);
    scene.expect("overlap", overlap, Err::<usize, _>(Errno::INVAL));
    let within = copy_file_range(&from, Some(&mut 0), &from, Some(&mut 300_000), 100);
    scene.expect("within one file", within, Ok::<_, Errno>(100));
    scene.expect("size", from.metadata()?.len(), 300_100);
    Ok(())
}

fn allocate(scene: &Scene) -> Result<()> {
    let file = scene.file("f", &[7; 20_000])?;
    let call = |mode, offset, length| fallocate(&file, mode, offset, length);
    let done = Ok::<(), Errno>(());
    scene.expect("extend", call(FallocateFlags::empty(), 0, 30_000), done);
    scene.expect("size", file.metadata()?.len(), 30_000);
    scene.expect(
        "KEEP_SIZE",
        call(FallocateFlags::KEEP_SIZE, 30_000, 70_000),
        done,
    );
    scene.expect("size kept", file.metadata()?.len(), 30_000);
    scene.expect("blocks reserved", file.metadata()?.blocks() >= 190, true);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    scene.expect("PUNCH_HOLE", call(punch, 4096, 4096), done);
    scene.expect(
        "ZERO_RANGE",
        call(FallocateFlags::ZERO_RANGE, 10_000, 1000),
        done,
    );
    let bytes = fs::read(scene.path("f"))?;
    scene.see("zeros", bytes.iter().filter(|byte| **byte == 0).count());
    scene.see("hash", crate::outcome::hash(&bytes));
    scene.see("hole", seek(&file, SeekFrom::Hole(0)));
    scene.see("length 0", call(FallocateFlags::empty(), 0, 0));
    const REASON: &str = "fuse_file_fallocate answers EOPNOTSUPP itself";
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        let refused = Err::<(), _>(Errno::OPNOTSUPP);
        scene.limit(REASON, format!("{mode:?}"), call(mode, 4096, 4096), refused);
    }
    Ok(())
}

fn tmpfile(scene: &Scene) -> Result<()> {
    use std::os::fd::AsRawFd;
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let nameless = open(&scene.dir, flags, Mode::from_raw_mode(0o640));
    scene.expect("open", nameless.as_ref().map(drop), Ok::<_, &Errno>(()));
    let file = fs::File::from(nameless?);
    scene.expect("links", file.metadata()?.nlink(), 0);
    scene.expect("mode", file.metadata()?.mode() & 0o7777, 0o640);
    file.write_all_at(b"nameless", 0)?;
    scene.expect("entries", fs::read_dir(&scene.dir)?.count(), 0);
    let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(
        CWD,
        by_number,
        CWD,
        scene.path("named"),
        AtFlags::SYMLINK_FOLLOW,
    )?;
    scene.expect("links after linkat", file.metadata()?.nlink(), 1);
    scene.expect("by name", fs::read(scene.path("named"))?, b"nameless");
    let exclusive = open(&scene.dir, flags | OFlags::EXCL, Mode::RUSR)?;
    let by_number = format!("/proc/self/fd/{}", exclusive.as_raw_fd());
    let refused = linkat(
        CWD,
        by_number,
        CWD,
        scene.path("never"),
        AtFlags::SYMLINK_FOLLOW,
    );
    scene.expect("linkat with O_EXCL", refused, Err::<(), _>(Errno::NOENT));
    Ok(())
}

fn truncate_on_open(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"contents")?;
    let map = Mapping::new(file.as_fd(), true, false, 0, 4096)?;
    let truncating = openat(
        CWD,
        scene.path("f"),
        OFlags::WRONLY | OFlags::TRUNC,
        Mode::empty(),
    )?;
    scene.expect("size", file.metadata()?.len(), 0);
    let mut bytes = [0; 8];
    scene.expect("read", file.read_at(&mut bytes, 0)?, 0);
    scene.expect("load", map.read(0, 1), Err::<Vec<u8>, _>(Errno::FAULT));
    pwrite(&truncating, b"new", 2)?;
    let mut text = Vec::new();
    scene.open("f", 0)?.read_to_end(&mut text)?;
    scene.expect("new contents", text, b"\0\0new");
    scene.expect("load again", map.read(0, 5)?, b"\0\0new");
    Ok(())
}

fn unaligned(scene: &Scene) -> Result<()> {
    drop(scene.file("f", &[5; 8192])?);
    let direct = scene.open("f", libc::O_DIRECT);
    scene.see("open", direct.as_ref().map(drop));
    let Ok(direct) = direct else { return Ok(()) };
    let mut memory = vec![0; 12_288];
    let skip = memory.as_ptr().align_offset(4096);
    let block = &mut memory[skip..skip + 4096];
    scene.expect(
        "aligned read",
        pread(&direct, &mut *block, 4096),
        Ok::<_, Errno>(4096),
    );
    scene.expect("contents", block[0], 5);
    scene.expect(
        "aligned write",
        pwrite(&direct, block, 8192),
        Ok::<_, Errno>(4096),
    );
    scene.expect("size", direct.metadata()?.len(), 12_288);
    // Where a file may be read and written without its cache, the filesystem below says.
    for (what, length, offset) in UNALIGNED {
        let bytes = &mut memory[skip..skip + length];
        bytes.fill(9);
        let read = pread(&direct, &mut *bytes, offset);
        let right = bytes[..read.unwrap_or(0)].iter().all(|byte| *byte == 5);
        scene.see(format!("read, {what}"), (read, right));
        bytes.fill(5);
        scene.see(format!("write, {what}"), pwrite(&direct, bytes, offset));
        scene.see(format!("size, {what}"), direct.metadata()?.len());
    }
    // Memory that a device cannot take is refused below; a server may copy it.
    let bytes = &mut memory[skip + 1..][..4096];
    let taken = |done| matches!(done, Ok(4096) | Err(Errno::INVAL));
    bytes.fill(9);
    let read = pread(&direct, &mut *bytes, 0);
    let right = bytes
        .iter()
        .all(|byte| *byte == if read.is_ok() { 5 } else { 9 });
    scene.expect("read to odd memory", taken(read) && right, true);
    bytes.fill(5);
    scene.expect("write from it", taken(pwrite(&direct, bytes, 0)), true);
    scene.see(
        "contents",
        crate::outcome::hash(&fs::read(scene.path("f"))?),
    );
    Ok(())
}

/// Offsets and lengths that are not aligned: to a page, to a sector, to nothing.
const UNALIGNED: [(&str, usize, u64); 6] = [
    ("offset", 4096, 1),
    ("length", 100, 4096),
    ("both", 1001, 777),
    ("sector", 512, 512),
    ("sectors over the end", 1024, 11_776),
    ("length over the end", 100, 12_800),
];

fn beyond(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"ten bytes!")?;
    let mut bytes = [1; 16];
    scene.expect("across", file.read_at(&mut bytes, 5)?, 5);
    scene.expect("at the end", file.read_at(&mut bytes, 10)?, 0);
    scene.expect("far after", file.read_at(&mut bytes, 1 << 40)?, 0);
    file.write_all_at(b"x", 5000)?;
    let contents = fs::read(scene.path("f"))?;
    scene.expect(
        "the hole",
        contents[10..5000].iter().all(|byte| *byte == 0),
        true,
    );
    Ok(())
}

fn largest(scene: &Scene) -> Result<()> {
    let file = scene.file("f", b"")?;
    let huge = i64::MAX.cast_unsigned() - 10;
    scene.see("write at the limit", pwrite(&file, b"x", huge));
    scene.see("truncate to the limit", code(file.set_len(huge)));
    scene.see("size", file.metadata()?.len());
    let negative = rustix::fs::ftruncate(&file, u64::MAX);
    scene.expect("negative length", negative, Err::<(), _>(Errno::INVAL));
    Ok(())
}
