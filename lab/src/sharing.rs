//! A run on several machines: what each does, and the recordings that they share.
//!
//! A case is dealt whole, by the hash of its name. The states of one recording are dealt as well,
//! by the hash of their content, but only where that one recording was given to all machines:
//! what the guest's processors do is not the same twice, so a workload that is run again leaves
//! another recording, and parts of two recordings are no whole of anything.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use plugpull_disk::{Recording, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    scenario::{Case, CaseName, Cuts, Profile, Story},
    select::Shard,
};

/// What of a run other machines do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// Which part of the states of each given recording is looked at.
    pub shard: Shard,
    /// Recordings that were given to the run, by case: directories.
    pub recordings: BTreeMap<CaseName, PathBuf>,
    /// Only make recordings, for other runs to explore.
    pub record_only: bool,
}

impl Sharing {
    /// Which part of a case's states is looked at: a recording that is made here is nobody else's.
    pub fn part_of(&self, case: &CaseName) -> Shard {
        match self.recordings.contains_key(case) {
            true => self.shard,
            false => Shard::ALL,
        }
    }
}

/// Whether a case's states are planned out of one recording, and can so be shared out.
pub fn can_be_shared(case: &Case) -> bool {
    matches!(&case.story, Story::PowerCut(_, cut) if matches!(cut.cuts, Cuts::Everywhere))
}

/// The directory among a case's artefacts that holds its recording.
const DIR: &str = "recording";
const MANIFEST: &str = "recording.json";
const BASE: &str = "base.img";
const LOG: &str = "run.disklog";
const SCHEMA: u32 = 1;

/// `recording.json`: a recorded run as something to hand on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    schema: u32,
    /// Whose run it is.
    pub case: CaseName,
    /// The seed of the run that made it.
    pub seed: u64,
    /// Its profile.
    pub profile: Profile,
    /// The name of the base disk where it was made.
    base: String,
    base_sha256: String,
    log_sha256: String,
}

impl Manifest {
    /// Read what is said of a recording, and see that its files are those that were written.
    ///
    /// # Errors
    /// Something is missing, cut short or changed.
    pub fn read(dir: &Path) -> Result<Self> {
        let manifest = Self::parse(dir)?;
        for (name, hash) in [(BASE, &manifest.base_sha256), (LOG, &manifest.log_sha256)] {
            let file = dir.join(name);
            ensure!(
                sha256(&file)? == *hash,
                "{} is not what was recorded: its SHA-256 is another than {MANIFEST} says",
                file.display()
            );
        }
        Ok(manifest)
    }

    fn parse(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let manifest: Self = serde_json::from_slice(&text)
            .with_context(|| format!("{} is malformed", path.display()))?;
        ensure!(
            manifest.schema == SCHEMA,
            "{} has the schema {}, and {SCHEMA} is known",
            path.display(),
            manifest.schema
        );
        Ok(manifest)
    }
}

/// Every recording in the directory of a run that made recordings.
///
/// # Errors
/// There is none, or one is damaged.
pub fn recordings(run: &Path) -> Result<Vec<(PathBuf, Manifest)>> {
    let tests = run.join("tests");
    let listed =
        fs::read_dir(&tests).with_context(|| format!("{} is no run's directory", run.display()))?;
    let mut found = Vec::new();
    for entry in listed {
        let dir = entry?.path().join(DIR);
        if dir.join(MANIFEST).exists() {
            let manifest = Manifest::read(&dir)?;
            found.push((fs::canonicalize(&dir)?, manifest));
        }
    }
    ensure!(
        !found.is_empty(),
        "there is no recording in {}; `cargo xtask test-vm --record-only` makes them",
        run.display()
    );
    found.sort_by(|a, b| a.1.case.cmp(&b.1.case));
    Ok(found)
}

/// Open a recording that was given, and what the disk held before it.
pub(crate) fn open(dir: &Path) -> Result<(String, View, Recording)> {
    let manifest = Manifest::parse(dir)?;
    let base = View::from_image(&dir.join(BASE))?;
    Ok((manifest.base, base, Recording::open(&dir.join(LOG))?))
}

/// Leave a recording among a case's artefacts, for others to look at.
pub(crate) fn keep(
    (case, seed, profile): (&CaseName, u64, Profile),
    (name, base, recording): (&str, &View, &Recording),
    artefacts: &Path,
) -> Result<()> {
    let dir = artefacts.join(DIR);
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    base.export_sparse(&dir.join(BASE))?;
    let log = dir.join(LOG);
    fs::rename(recording.path(), &log).with_context(|| format!("move to {}", log.display()))?;
    let manifest = Manifest {
        schema: SCHEMA,
        case: case.clone(),
        seed,
        profile,
        base: name.to_owned(),
        base_sha256: sha256(&dir.join(BASE))?,
        log_sha256: sha256(&log)?,
    };
    let path = dir.join(MANIFEST);
    fs::write(&path, serde_json::to_vec_pretty(&manifest)?)
        .with_context(|| format!("write {}", path.display()))
}

fn sha256(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<_> {
        let mut hash = Sha256::new();
        let mut file = File::open(path)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hash.finalize()),
                n => hash.update(&buffer[..n]),
            }
        }
    };
    let hash = read().with_context(|| format!("read {}", path.display()))?;
    Ok(hash.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_that_was_changed_or_cut_short_is_refused() {
        let run = tempfile::tempdir().expect("a directory");
        let dir = run.path().join("tests/a__b__c__d").join(DIR);
        assert!(recordings(run.path()).is_err(), "no run");
        fs::create_dir_all(&dir).expect("made");
        let none = recordings(run.path()).expect_err("nothing there");
        assert!(none.to_string().contains("--record-only"), "{none}");
        for name in [BASE, LOG] {
            fs::write(dir.join(name), name).expect("written");
        }
        let manifest = Manifest {
            schema: SCHEMA,
            case: CaseName::new("a::b::c::d"),
            seed: 7,
            profile: Profile::Full,
            base: "debian13-ext4-ab12".into(),
            base_sha256: sha256(&dir.join(BASE)).expect("hashed"),
            log_sha256: sha256(&dir.join(LOG)).expect("hashed"),
        };
        let write = |manifest: &Manifest| {
            let text = serde_json::to_vec(manifest).expect("encoded");
            fs::write(dir.join(MANIFEST), text).expect("written");
        };
        write(&manifest);
        let found = recordings(run.path()).expect("whole");
        assert_eq!(found[0].1, manifest);
        fs::write(dir.join(LOG), "run.diskl").expect("written");
        let short = recordings(run.path()).expect_err("cut short");
        assert!(
            short.to_string().contains("is not what was recorded"),
            "{short}"
        );
        fs::remove_file(dir.join(LOG)).expect("removed");
        assert!(recordings(run.path()).is_err());
        write(&Manifest {
            schema: SCHEMA + 1,
            ..manifest
        });
        let newer = recordings(run.path()).expect_err("newer");
        assert!(newer.to_string().contains("has the schema 2"), "{newer}");
    }

    #[test]
    fn only_a_recording_that_was_given_is_shared_out() {
        let given = CaseName::new("a::b::c::d");
        let sharing = Sharing {
            shard: "2/4".parse().expect("a shard"),
            recordings: BTreeMap::from([(given.clone(), PathBuf::from("somewhere"))]),
            record_only: false,
        };
        assert_eq!(sharing.part_of(&given), sharing.shard);
        assert_eq!(sharing.part_of(&CaseName::new("other")), Shard::ALL);
    }
}
