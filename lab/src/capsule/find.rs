//! Finding the capsule that somebody means: a file, or the id of a failing state
//! in one of the runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Capsule, FILE, Manifest};
use crate::scenario::nearest;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A capsule, and perhaps one of its states.
    File(PathBuf),
    /// A state of a run.
    Id {
        /// The parts of the case's name that were given, in order; may be none.
        case: Vec<String>,
        /// The state.
        state: String,
    },
}

/// There is no such state, and what there is instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoSuchState(String);

impl Wanted {
    /// What a word of the command line means: a file where there is one or where
    /// it can be nothing else, otherwise an id such as
    /// `postgres-power-cut/ext4@e12-5f3a90c1`, with `::` or `/` between those
    /// parts of the case's name that are given, or `e12-5f3a90c1` alone.
    pub fn of(word: &str) -> Self {
        let (case, state) = word.rsplit_once('@').unwrap_or(("", word));
        if Path::new(word).exists() || !is_state(state) {
            return Self::File(word.into());
        }
        let parts = case.split("::").flat_map(|part| part.split('/'));
        Self::Id {
            case: parts
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect(),
            state: state.to_owned(),
        }
    }
}

/// `e`, the epoch, `-`, and digits of a hash.
fn is_state(text: &str) -> bool {
    let Some((epoch, hash)) = text.strip_prefix('e').and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    let digits = |text: &str, of: fn(&u8) -> bool| !text.is_empty() && text.bytes().all(|b| of(&b));
    digits(epoch, u8::is_ascii_digit) && digits(hash, u8::is_ascii_hexdigit)
}

/// Looks for it, in the runs below `runs` the newest first: a capsule, and the
/// state that was named.
///
/// # Errors
/// [`super::BadCapsule`] when a named file is no capsule, [`NoSuchState`] when no
/// run has that state; another error when the runs cannot be listed.
pub fn find(wanted: &Wanted, runs: &Path) -> Result<(Capsule, Option<String>)> {
    let (case, state) = match wanted {
        Wanted::File(path) => return Ok((Capsule::open(path)?, None)),
        Wanted::Id { case, state } => (case, state),
    };
    let mut others = Vec::new();
    let mut unreadable = Vec::new();
    for path in capsules(runs)? {
        let capsule = match Capsule::open(&path) {
            Ok(capsule) => capsule,
            Err(error) => {
                unreadable.push(format!("{error:#}"));
                continue;
            }
        };
        let manifest = capsule.manifest();
        if is_of(manifest, case) && manifest.states.iter().any(|has| has.id == *state) {
            return Ok((capsule, Some(state.clone())));
        }
        others.extend(
            manifest
                .states
                .iter()
                .map(|has| super::id(&manifest.case, &has.id)),
        );
    }
    let mut why = format!("no run in {} has a failing state {state}", runs.display());
    if !case.is_empty() {
        why.push_str(&format!(" of {}", case.join("/")));
    }
    match nearest(
        state,
        others.iter().map(|id| id.rsplit('@').next().unwrap_or(id)),
    ) {
        Some(near) => why.push_str(&format!("; did you mean `{near}`?")),
        None if others.is_empty() => why.push_str(
            ": none of them has a capsule; those of runs that are older than the last ten are gone",
        ),
        None => why.push_str(&format!(
            "; there are {}, such as {}",
            others.len(),
            others[0]
        )),
    }
    for one in unreadable {
        why.push_str(&format!("\nleft out: {one}"));
    }
    Err(NoSuchState(why).into())
}

/// Every capsule of the runs, the newest run first.
fn capsules(runs: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for run in sorted(runs)?.into_iter().rev() {
        let latest = run.file_name().is_some_and(|name| name == "latest");
        if latest || !run.join("tests").is_dir() {
            continue;
        }
        for test in sorted(&run.join("tests"))? {
            // Of a case whose states were shared out, each shard has made its own.
            let shards = sorted(&test)?.into_iter().filter(|path| is_shard(path));
            let places = shards.chain([test.clone()]).map(|dir| dir.join(FILE));
            found.extend(places.filter(|path| path.exists()));
        }
    }
    Ok(found)
}

fn is_shard(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(crate::merge::SHARD)
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Whether the case's name has these parts, in this order.
fn is_of(manifest: &Manifest, wanted: &[String]) -> bool {
    let mut parts = manifest.case.as_str().split("::");
    wanted.iter().all(|part| parts.any(|has| has == part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_told_from_a_file() {
        let id = |case: &[&str], state: &str| Wanted::Id {
            case: case.iter().map(|part| (*part).to_owned()).collect(),
            state: state.to_owned(),
        };
        let state = "e12-5f3a90c1";
        assert_eq!(Wanted::of(state), id(&[], state));
        let of = Wanted::of("postgres-power-cut/ext4@e12-5f3a90c1");
        assert_eq!(of, id(&["postgres-power-cut", "ext4"], state));
        let of = Wanted::of("notes::debian13::ext4::native@e12-5f3a90c1");
        assert_eq!(of, id(&["notes", "debian13", "ext4", "native"], state));
        for file in ["x.capsule", "e12", "a@b", "/tmp/e12-zz", "notes@e-5f"] {
            assert_eq!(Wanted::of(file), Wanted::File(file.into()), "{file}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(state);
        fs::write(&path, "").expect("written");
        let word = path.display().to_string();
        assert_eq!(
            Wanted::of(&word),
            Wanted::File(path),
            "what is there is a file"
        );
    }
}
