//! A capsule: one file with all that it takes to see failing crash states again,
//! on another machine too, without running the workload.
//!
//! It is a tar archive under gzip, so that everything in it can be had with the
//! tools of any host, without this program. Its members, in this order:
//!
//! | member | holds |
//! |---|---|
//! | `capsule.json` | the [`Manifest`]: versions, seeds, states, the oracles' words, and size and SHA-256 of all that follows |
//! | `scenario.toml` | the scenario file, whole |
//! | `image.json` | the manifest of the guest's image: every package |
//! | `base.data` | the blocks of the base disk that are not zeros, back to back |
//! | `load.disklog` | the recording, as `plugpull-disk log` reads it |
//! | `files/NAME` | the host files that the scenario brings into guests |
//! | `console/GUEST.log` | the end of each guest's console |
//!
//! The base disk travels with it: mkfs draws UUIDs and hash seeds and writes the
//! time of day, so no other machine would make the same one again.
//!
//! A case has one capsule for all of its failing states, because what they share
//! is nearly all of it. Nothing of it is believed that can be checked: the sums of
//! the members, the base against the one that was recorded over, and of a state
//! its name and its whole content.

mod find;
mod pack;
#[cfg(test)]
pub(crate) mod tests;
mod unpack;

use std::path::{Path, PathBuf};

use plugpull_disk::{CutPoint, Keep};
use plugpull_vm::cache::ContentHash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    oracle::Finding,
    scenario::{CaseName, ImageName, OracleName, Profile, ScenarioName},
};

pub use find::{NoSuchState, Wanted, find};
pub(crate) use pack::{Contents, Source, pack, write_runs};
pub use unpack::{Capsule, Unpacked};

/// The version of the format.
pub const SCHEMA: u32 = 1;
/// Its name in the directory of a test.
pub const FILE: &str = "failures.capsule";
/// What all members may have together, in bytes: hours of a load, or a database
/// that nobody wants to mail.
pub const BYTES_MAX: u64 = 2 << 30;
/// What the manifest alone may have.
const MANIFEST_MAX: u64 = 64 << 20;

const MANIFEST: &str = "capsule.json";
pub(crate) const SCENARIO: &str = "scenario.toml";
pub(crate) const IMAGE: &str = "image.json";
pub(crate) const BASE: &str = "base.data";
pub(crate) const LOG: &str = "load.disklog";
pub(crate) const FILES: &str = "files/";
pub(crate) const CONSOLE: &str = "console/";

/// A file that is no capsule, is damaged, or does not fit what is here: the
/// caller's file, and not this host's trouble.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct BadCapsule {
    path: PathBuf,
    why: String,
}

impl BadCapsule {
    /// This file, for this reason.
    pub fn new(path: &Path, why: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            why: why.into(),
        }
    }
}

/// What a capsule says of itself and of all that is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Who made it.
    pub versions: Versions,
    /// Where the randomness of the run came from.
    pub seed: u64,
    /// Where that of the case came from.
    pub case_seed: u64,
    /// The profile, which decides the sizes.
    pub profile: Profile,
    /// `scenario::image::lower::mount`.
    pub case: CaseName,
    /// The scenario's name.
    pub scenario: ScenarioName,
    /// Every image that the scenario names: it is no mistake to name one that the
    /// reader has not.
    pub images: Vec<ImageName>,
    /// The image of the case.
    pub image: ImageRef,
    /// The base disk.
    pub base: BaseRef,
    /// What follows, in this order.
    pub members: Vec<Member>,
    /// The failing states, those first that the report tells of.
    pub states: Vec<State>,
}

/// The programs that were at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Of this project.
    pub plugpull: String,
    /// QEMU's, in its own words.
    pub qemu: String,
    /// `kvm` or `tcg`.
    pub accel: String,
}

/// A guest image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Its name.
    pub name: ImageName,
    /// `uname -r`.
    pub kernel: String,
    /// SHA-256 over the names, versions and hashes of all packages.
    pub packages_hash: String,
}

/// The disk that the load was recorded over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRef {
    /// Its name in the cache where it was made.
    pub name: String,
    /// The size of the disk in bytes.
    pub size: u64,
    /// What tells it from every other: a SHA-256 of all that it holds.
    pub digest: String,
    /// Where on the disk the data of `base.data` belongs: offset and length in
    /// bytes, in order. The rest is zeros.
    pub runs: Vec<(u64, u64)>,
}

/// A part of a capsule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name in the archive.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Of its content.
    pub sha256: ContentHash,
}

/// A crash state that an oracle objected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Its name, as `e12-5f3a90c1`.
    pub id: String,
    /// The cut that left it.
    pub cut: CutPoint,
    /// Which pending writes survived that.
    pub keep: Keep,
    /// The event up to which promises count.
    pub promised_by: u64,
    /// What the disk held, as a digest relative to the base.
    pub content: String,
    /// What the oracles said.
    pub findings: Vec<Words>,
    /// What else the report tells of it: how few writes it takes.
    pub story: Vec<String>,
}

/// What an oracle said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// Which one.
    pub oracle: OracleName,
    /// What it said.
    pub detail: String,
}

impl From<&Finding> for Words {
    fn from(finding: &Finding) -> Self {
        Self {
            oracle: finding.oracle,
            detail: finding.detail.clone(),
        }
    }
}

/// The id of a failing state.
pub fn id(case: &CaseName, state: &str) -> String {
    format!("{case}@{state}")
}

/// What a base disk holds, as one sum: its size, and each run of data with its
/// place. Runs are as they are handed over, so the same content gives the same sum.
pub(crate) struct BaseDigest(Sha256);

impl BaseDigest {
    pub(crate) fn new(size: u64) -> Self {
        Self(Sha256::new().chain_update(size.to_le_bytes()))
    }

    pub(crate) fn run(&mut self, at: u64, data: &[u8]) {
        self.0.update(at.to_le_bytes());
        self.0.update((data.len() as u64).to_le_bytes());
        self.0.update(data);
    }

    pub(crate) fn finish(self) -> String {
        let sum = self.0.finalize();
        sum.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
