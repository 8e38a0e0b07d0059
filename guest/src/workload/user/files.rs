//! Looks at a file that a program promised.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io::{ErrorKind, Read},
    os::unix::{ffi::OsStrExt, fs::FileTypeExt},
    path::Path,
};

use anyhow::Result;
use plugpull_protocol::workload::user::{UserFile, decode};
use sha2::{Digest, Sha256};

/// What is at an encoded path below a directory. Whatever stands in the way is
/// part of what is seen.
pub(super) fn look(dir: &Path, key: &str) -> Result<UserFile> {
    let bytes = decode(key.as_bytes()).map_err(anyhow::Error::msg)?;
    let path = dir.join(OsStr::from_bytes(&bytes));
    Ok(see(&path).unwrap_or_else(|error| match error.kind() {
        // A path through a file, as when a directory was promised and never
        // came, leads nowhere either.
        ErrorKind::NotFound | ErrorKind::NotADirectory => UserFile::Absent,
        _ => UserFile::Unreadable {
            why: error.to_string(),
        },
    }))
}

fn see(path: &Path) -> std::io::Result<UserFile> {
    let meta = path.symlink_metadata()?;
    if !meta.is_file() {
        return Ok(UserFile::Other {
            kind: kind(&meta).into(),
        });
    }
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
    let digits = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(UserFile::File {
        size,
        sha256: digits,
    })
}

fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "a device"
    }
}
