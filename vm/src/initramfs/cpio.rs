//! Writes the "newc" cpio format that the kernel unpacks.

use std::collections::BTreeMap;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive to be. Entries are sorted, so that the order of adding does not
/// show and a directory comes before what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    content: Vec<u8>,
}

impl Archive {
    /// Adds a directory, unless it is there.
    pub(super) fn dir(&mut self, path: &str, permissions: u32) {
        self.parents(path);
        let dir = Entry {
            mode: DIRECTORY | permissions,
            device: (0, 0),
            content: Vec::new(),
        };
        self.entries.entry(path.to_owned()).or_insert(dir);
    }

    /// Adds or replaces a file, and adds the directories above it.
    pub(super) fn file(&mut self, path: &str, permissions: u32, content: Vec<u8>) {
        self.parents(path);
        let file = Entry {
            mode: REGULAR | permissions,
            device: (0, 0),
            content,
        };
        self.entries.insert(path.to_owned(), file);
    }

    /// Adds a character device.
    pub(super) fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        self.parents(path);
        let device = Entry {
            mode: CHARACTER_DEVICE | permissions,
            device: (major, minor),
            content: Vec::new(),
        };
        self.entries.insert(path.to_owned(), device);
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.dir(parent, 0o755);
        }
    }

    /// The archive's bytes: everything belongs to root and was changed at the
    /// epoch.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            write_entry(&mut out, number, path, entry);
        }
        let end = Entry {
            mode: 0,
            device: (0, 0),
            content: Vec::new(),
        };
        write_entry(&mut out, 0, "TRAILER!!!", &end);
        // The unit that cpio(1) pads to; QEMU and the kernel take any.
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

fn write_entry(out: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & DIRECTORY == DIRECTORY {
        2
    } else {
        1
    };
    // A field has eight hexadecimal digits; a member of 4 GiB would not be an
    // initramfs.
    let size = u32::try_from(entry.content.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
    let (major, minor) = entry.device;
    let fields = [
        inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0,
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(&entry.content);
    pad(out);
}

/// Names and contents end on a multiple of four, counted from the start.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    //! Read back by a reader of the format's own description; the kernel's is
    //! tried by every boot.

    use super::*;

    fn read(mut bytes: &[u8]) -> Vec<(String, u32, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, time, size, name_size) =
                (field(1), field(5), field(6) as usize, field(11) as usize);
            assert_eq!((field(2), field(3), time), (0, 0, 0), "owner, group, time");
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            if name == "TRAILER!!!" {
                return entries;
            }
            let data = (110 + name_size).next_multiple_of(4);
            entries.push((name, mode, field(10), bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_written_can_be_read_and_is_sorted() {
        let mut archive = Archive::default();
        archive.file("usr/lib/x.ko", 0o644, b"12345".to_vec());
        archive.file("init", 0o755, b"#!".to_vec());
        archive.char_device("dev/console", 0o600, 5, 1);
        archive.dir("dev", 0o700);
        let expected = [
            ("dev", 0o040_755, 0, ""),
            ("dev/console", 0o020_600, 1, ""),
            ("init", 0o100_755, 0, "#!"),
            ("usr", 0o040_755, 0, ""),
            ("usr/lib", 0o040_755, 0, ""),
            ("usr/lib/x.ko", 0o100_644, 0, "12345"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, mode, minor, content)| {
                (
                    (*name).to_owned(),
                    *mode,
                    *minor,
                    content.as_bytes().to_vec(),
                )
            })
            .collect();
        assert_eq!(read(&archive.to_bytes()), expected);
        assert_eq!(archive.to_bytes().len() % 512, 0);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let (mut one, mut two) = (Archive::default(), Archive::default());
        one.file("a", 0o644, b"a".to_vec());
        one.file("b/c", 0o644, b"c".to_vec());
        two.file("b/c", 0o644, b"c".to_vec());
        two.file("a", 0o644, b"a".to_vec());
        assert_eq!(one.to_bytes(), two.to_bytes());
    }
}
