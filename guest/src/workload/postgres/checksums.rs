//! `pg_checksums`, over a whole cluster or over what was not found sound before.
//!
//! What it says of a file depends on that file's bytes and its segment number alone
//! (`scan_file()` in src/bin/pg_checksums/pg_checksums.c), and nearly all files of a cluster are
//! the same in every state that a power cut may leave. So the others are put into a data directory
//! in memory, with the control file, of which it asks first whether the server was stopped well,
//! and it looks there, by its own rules. Every file is read in every state all the same: it is
//! known by its bytes.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use plugpull_protocol::Exited;
use plugpull_protocol::workload::{BadBlock, Checksums};

use super::files::{self, DataFile, Reader};
use super::server::program;
use crate::workload::Env;

/// How many bad blocks and complaints are reported.
const KEPT: usize = 1000;

/// Not more than this is put into memory.
const COPIED: u64 = 64 << 20;

/// It says how the server was stopped, and whether there are checksums: never left out.
const CONTROL: &str = "global/pg_control";

/// `pg_checksums --check` on a stopped cluster.
pub(super) fn whole(env: &Env, dir: &Path, timeout: Duration) -> anyhow::Result<Checksums> {
    Ok(understood(verified(env, dir, timeout)?))
}

/// The same of every file that is not known to be sound; of all where that is most of the cluster,
/// or where anything is unusual.
pub(super) fn changed(env: &Env, dir: &Path, timeout: Duration) -> anyhow::Result<Checksums> {
    let mut reader = Reader::new();
    let listed = files::list(dir, env.postgres_uid).and_then(|paths| {
        let all = reader.files(dir, &paths, env.postgres_uid)?;
        let unknown = env.sound.unknown_files(&all);
        let scratch = few(&unknown, &all)
            .then(|| Scratch::of(env, dir, &unknown, &mut reader))
            .transpose()?;
        let left_out = scratch.as_ref().map_or(0, |_| all.len() - unknown.len());
        Ok((all, scratch, left_out))
    });
    let (all, scratch, left_out) = match listed {
        Ok(listed) => listed,
        Err(why) => return Ok(told(whole(env, dir, timeout)?, &format!("{why:#}"))),
    };
    let exited = match &scratch {
        Some(scratch) => named_as_in(dir, &scratch.0, verified(env, &scratch.0, timeout)?),
        None => verified(env, dir, timeout)?,
    };
    if exited.success() {
        let sound = all.iter().filter(|file| file.path != Path::new(CONTROL));
        env.sound.found_files(sound);
    }
    let count = format!(
        "{} files were read; left out, as they were found sound: {left_out}",
        all.len()
    );
    Ok(told(understood(exited), &count))
}

/// Few enough to be copied.
fn few(unknown: &[DataFile], all: &[DataFile]) -> bool {
    let bytes = |files: &[DataFile]| files.iter().map(|file| file.bytes).sum::<u64>();
    bytes(unknown) <= COPIED.min(bytes(all) / 2)
}

fn verified(env: &Env, dir: &Path, timeout: Duration) -> anyhow::Result<Exited> {
    program(env, "pg_checksums")
        .args(["--check", "--pgdata"])
        .args([dir])
        .run(timeout)
}

/// A file of a copy goes by the name of the one that was copied.
fn named_as_in(dir: &Path, scratch: &Path, exited: Exited) -> Exited {
    let (real, copy) = (dir.display().to_string(), scratch.display().to_string());
    Exited {
        stdout: exited.stdout.replace(&copy, &real),
        stderr: exited.stderr.replace(&copy, &real),
        ..exited
    }
}

fn told(mut seen: Checksums, first: &str) -> Checksums {
    seen.exited.stdout.insert_str(0, &format!("{first}\n"));
    seen
}

fn understood(exited: Exited) -> Checksums {
    let mut bad = Vec::new();
    let mut complaints = Vec::new();
    for line in exited.stderr.lines() {
        match bad_block(line) {
            Some(block) if bad.len() < KEPT => bad.push(block),
            None if complaints.len() < KEPT => complaints.push(line.to_owned()),
            _ => {}
        }
    }
    Checksums {
        exited,
        bad,
        complaints,
    }
}

/// Understand `…checksum verification failed in file "F", block N: …`.
fn bad_block(line: &str) -> Option<BadBlock> {
    let (_, rest) = line.split_once("checksum verification failed in file \"")?;
    let (file, rest) = rest.split_once("\", block ")?;
    let (block, _) = rest.split_once(':')?;
    Some(BadBlock {
        file: file.to_owned(),
        block: block.parse().ok()?,
    })
}

/// A data directory in memory, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    /// What `pg_checksums` needs, and these files.
    fn of(env: &Env, dir: &Path, files: &[DataFile], reader: &mut Reader) -> anyhow::Result<Self> {
        let own = |path: &Path| {
            let owned = chown(path, Some(env.postgres_uid), Some(env.postgres_gid));
            owned.with_context(|| format!("give {} to the database's user", path.display()))
        };
        let make = |path: &Path| {
            fs::create_dir(path).with_context(|| format!("make {}", path.display()))?;
            own(path)
        };
        let scratch = Self(env.run_dir.join("checksums"));
        make(&scratch.0)?;
        for needed in ["global", "base", "pg_tblspc"] {
            make(&scratch.0.join(needed))?;
        }
        for file in files {
            let to = scratch.0.join(&file.path);
            if let Some(above) = to.parent() {
                fs::create_dir_all(above)?;
                own(above)?;
            }
            reader.copy(dir, file, &to)?;
            own(&to)?;
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_block_is_understood() {
        let line = "pg_checksums: error: checksum verification failed in file \"/d/base/5/16388\", block 12: calculated checksum 4A5C but block contains 0";
        let block = bad_block(line).expect("understood");
        assert_eq!((block.file.as_str(), block.block), ("/d/base/5/16388", 12));
        assert_eq!(bad_block("pg_checksums: error: could not read"), None);
    }

    #[test]
    fn what_is_said_of_a_copy_names_the_file_itself() {
        let exited = Exited {
            code: 1,
            stdout: "Bad checksums:  1\n".into(),
            stderr: "pg_checksums: error: could not read block 3 in file \"/run/x/base/5/1\": read 7 of 8192\n".into(),
            elapsed_ms: 0,
        };
        let seen = understood(named_as_in(
            Path::new("/mnt/pgdata"),
            Path::new("/run/x"),
            exited,
        ));
        assert_eq!(
            seen.complaints,
            [
                "pg_checksums: error: could not read block 3 in file \"/mnt/pgdata/base/5/1\": read 7 of 8192"
            ]
        );
    }

    #[test]
    fn most_of_a_cluster_is_not_copied_nor_more_than_memory_takes() {
        let file = |bytes| DataFile {
            path: "base/1/1".into(),
            bytes,
            hash: bytes,
        };
        let of = |unknown: &[u64], all: &[u64]| {
            let files = |bytes: &[u64]| bytes.iter().copied().map(file).collect::<Vec<_>>();
            few(&files(unknown), &files(all))
        };
        assert!(of(&[], &[8192]));
        assert!(of(&[8192], &[8192, 8192]));
        assert!(!of(&[8193], &[8193, 8192]));
        assert!(of(&[COPIED], &[COPIED, COPIED]));
        assert!(!of(&[COPIED + 1], &[COPIED + 1, COPIED + 1]));
    }
}
