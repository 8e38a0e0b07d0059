//! File handles as values: what name_to_handle_at(2) gives and open_by_handle_at(2)
//! takes, and how little of one must be kept.
//!
//! A handle finds an inode again without a name and without a descriptor, and never
//! finds another: it holds the inode number and the generation that the filesystem
//! gave it. Of the handles of ext4, XFS, Btrfs and tmpfs all but the generation follows
//! from the inode number and the root's own handle, so four bytes are enough to keep.

use std::hash::Hasher;

/// The longest handle there is (`MAX_HANDLE_SZ`, include/linux/exportfs.h).
const MAX_BYTES: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct FileHandle {
    length: u32,
    kind: i32,
    bytes: [u8; MAX_BYTES],
}

impl FileHandle {
    /// A handle of no inode, with all its room free for one to be put in.
    pub(crate) fn room() -> Self {
        FileHandle {
            length: MAX_BYTES as u32,
            kind: 0,
            bytes: [0; MAX_BYTES],
        }
    }

    pub(super) fn new(kind: i32, parts: &[&[u8]]) -> Self {
        let mut handle = FileHandle::room();
        let mut length = 0;
        for part in parts {
            handle.bytes[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        handle.kind = kind;
        handle.length = length as u32;
        handle
    }

    pub(super) fn kind(&self) -> i32 {
        self.kind
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let length = usize::try_from(self.length).unwrap_or(MAX_BYTES);
        &self.bytes[..length.min(MAX_BYTES)]
    }
}

impl PartialEq for FileHandle {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.bytes()) == (other.kind, other.bytes())
    }
}

impl Eq for FileHandle {}

/// How a handle is made of an inode number and a generation, all in the order of
/// bytes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Form {
    /// Number and generation in 32 bits each: ext4 and XFS with small numbers
    /// (`generic_encode_ino32_fh` in fs/libfs.c).
    Ino32,
    /// Number in 64 bits, generation (`struct xfs_fid64` in fs/xfs/xfs_export.h).
    Ino64,
    /// Generation, number in 64 bits (`shmem_encode_fh` in mm/shmem.c).
    Shmem,
    /// Number, subvolume, generation (`struct btrfs_fid` in fs/btrfs/export.h); the
    /// subvolume is the root's, for each has a device number of its own.
    Btrfs,
    /// Something else, kept as it is.
    Whole,
    /// There are no handles.
    Absent,
}

const FILEID_INO32_GEN: i32 = 1;
const FILEID_XFS_64: i32 = 0x81;
const FILEID_BTRFS: i32 = 0x4d;

/// A handle taken apart, or the reason to keep it whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) form: Form,
    pub(super) generation: u32,
}

impl Identity {
    /// What must be kept of the handle of inode `ino`. `root` is the handle of the
    /// filesystem's root.
    pub(super) fn of(handle: &FileHandle, ino: u64, root: &FileHandle) -> Self {
        let (form, at) = match (handle.kind, handle.bytes().len()) {
            (FILEID_INO32_GEN, 8) => (Form::Ino32, 4),
            (FILEID_INO32_GEN, 12) => (Form::Shmem, 0),
            (FILEID_XFS_64, 12) => (Form::Ino64, 8),
            (FILEID_BTRFS, 20) => (Form::Btrfs, 16),
            _ => return Self::whole(handle),
        };
        let identity = Identity {
            form,
            generation: word(handle, at),
        };
        // What looks like a known kind and is not must not be taken for it.
        match identity.handle(ino, root) {
            Some(same) if same == *handle => identity,
            _ => Self::whole(handle),
        }
    }

    /// No handle, only a generation.
    pub(super) fn absent(generation: u32) -> Self {
        Identity {
            form: Form::Absent,
            generation,
        }
    }

    fn whole(handle: &FileHandle) -> Self {
        Identity {
            form: Form::Whole,
            generation: hash(handle),
        }
    }

    /// The handle again, if it can be made from this.
    pub(super) fn handle(self, ino: u64, root: &FileHandle) -> Option<FileHandle> {
        let generation = self.generation.to_ne_bytes();
        let number = ino.to_ne_bytes();
        let new = |kind, parts: &[&[u8]]| Some(FileHandle::new(kind, parts));
        match self.form {
            Form::Ino32 => {
                let small = u32::try_from(ino).ok()?.to_ne_bytes();
                new(FILEID_INO32_GEN, &[&small, &generation])
            }
            Form::Shmem => {
                let (low, high) = (ino as u32, (ino >> 32) as u32);
                let (low, high) = (low.to_ne_bytes(), high.to_ne_bytes());
                new(FILEID_INO32_GEN, &[&generation, &low, &high])
            }
            Form::Ino64 => new(FILEID_XFS_64, &[&number, &generation]),
            Form::Btrfs => {
                let subvolume = root.bytes().get(8..16)?;
                new(FILEID_BTRFS, &[&number, subvolume, &generation])
            }
            Form::Whole | Form::Absent => None,
        }
    }
}

fn word(handle: &FileHandle, at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&handle.bytes()[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

/// A number that stands for a handle, today and after a restart: FNV-1a
/// (RFC 9923), its halves laid over each other.
fn hash(handle: &FileHandle) -> u32 {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    hasher.write(&handle.kind.to_ne_bytes());
    hasher.write(handle.bytes());
    let hash = hasher.finish();
    (hash ^ (hash >> 32)) as u32
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Handles that Linux 6.18 gave, with their inode numbers.
    const SEEN: [(i32, u64, &[u8], Form, u32); 4] = [
        (
            1,
            0x0099_03a8,
            b"\xa8\x03\x99\x00\xf8\xf6\x1b\xca",
            Form::Ino32,
            0xca1b_f6f8,
        ),
        (
            1,
            2,
            b"\x44\xd5\xb5\x7d\x02\0\0\0\0\0\0\0",
            Form::Shmem,
            0x7db5_d544,
        ),
        (
            0x81,
            0x83,
            b"\x83\0\0\0\0\0\0\0\x0e\x93\x35\x65",
            Form::Ino64,
            0x6535_930e,
        ),
        (
            0x4d,
            0x101,
            b"\x01\x01\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\x07\0\0\0",
            Form::Btrfs,
            7,
        ),
    ];

    #[test]
    #[cfg(target_endian = "little")]
    fn known_kinds_are_kept_in_four_bytes() {
        for (kind, ino, bytes, form, generation) in SEEN {
            let handle = FileHandle::new(kind, &[bytes]);
            let root = handle;
            let identity = Identity::of(&handle, ino, &root);
            assert_eq!(identity, Identity { form, generation });
            assert_eq!(identity.handle(ino, &root), Some(handle));
            // The same bytes for another inode are no handle of this form.
            let other = Identity::of(&handle, ino + 1, &root);
            assert_eq!(other.form, Form::Whole);
        }
    }

    #[test]
    fn unknown_kinds_are_kept_whole_and_told_apart() {
        let root = FileHandle::new(0xb1, &[b"root"]);
        let one = Identity::of(&FileHandle::new(0xb1, &[b"some handle 1"]), 1, &root);
        let two = Identity::of(&FileHandle::new(0xb1, &[b"some handle 2"]), 1, &root);
        assert_eq!((one.form, two.form), (Form::Whole, Form::Whole));
        assert_ne!(one.generation, two.generation);
        // The same in every run of every build: clients compare it across restarts.
        assert_eq!(
            hash(&FileHandle::new(0xb1, &[b"some handle 1"])),
            one.generation
        );
    }
}
