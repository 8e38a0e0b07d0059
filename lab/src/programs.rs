//! The host files that a user's scenario brings into guests: found, checked,
//! and given their places on the payload disk.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use plugpull_vm::payload::{self, PayloadFile};

use crate::scenario::{
    BadFile, Case, Cuttable, HostFile, Judge, Problem, Program, ScenarioName, Story,
};

/// Where the payload disk is in a guest.
const PAYLOAD: &str = "/mnt/payload";
/// The built-in workloads that are programs, on that disk.
pub(crate) const STORES: &str = "/mnt/payload/plugpull-stores";
/// The directory on it that holds a directory for each scenario.
const PROGRAMS: &str = "programs";
/// What the user's files of a run may have in all: the payload disk's size
/// less what our own programs and the filesystem take.
const BYTES_MAX: u64 = payload::SIZE / 4 * 3;

/// Where a scenario's programs are run in the guest: beside its files.
pub fn guest_dir(scenario: &ScenarioName, program: &Program) -> String {
    match all_of(program).next() {
        Some(_) => format!("{PAYLOAD}/{PROGRAMS}/{scenario}"),
        None => "/".to_owned(),
    }
}

/// The place of such a file on the payload disk.
pub(crate) fn place(scenario: &ScenarioName, name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(scenario.as_str()).join(name)
}

/// Every host file that a program brings.
pub(crate) fn all_of(program: &Program) -> impl Iterator<Item = &HostFile> {
    let more: &[HostFile] = match &program.judge {
        Judge::Check { files, .. } => files,
        Judge::Files { .. } | Judge::Store(_) => &[],
    };
    program.files.iter().chain(more)
}

/// The same, to have them taken from elsewhere.
pub(crate) fn all_of_mut(program: &mut Program) -> impl Iterator<Item = &mut HostFile> {
    let more: &mut [HostFile] = match &mut program.judge {
        Judge::Check { files, .. } => files,
        Judge::Files { .. } | Judge::Store(_) => &mut [],
    };
    program.files.iter_mut().chain(more)
}

/// The files that these cases bring.
///
/// # Errors
/// [`BadFile`] when one is not there, is no regular file or cannot be read,
/// two of a scenario have one name, or they are too large together.
pub fn payload_files(cases: &[Case]) -> Result<Vec<PayloadFile>, BadFile> {
    let mut all = BTreeMap::new();
    let mut bytes = 0;
    for case in cases {
        let (Story::Program(program) | Story::PowerCut(Cuttable::Program(program), _)) =
            &case.story
        else {
            continue;
        };
        let scenario = &case.scenario;
        let mut problems = Vec::new();
        for file in all_of(program) {
            match found(scenario.dir(), file) {
                Ok((host, name, size)) => {
                    let guest = place(&scenario.name, &name);
                    if all.insert(guest, host).is_none() {
                        bytes += size;
                    }
                    if bytes > BYTES_MAX {
                        problems.push(too_large(file, bytes));
                    }
                }
                Err(problem) => problems.push(problem),
            }
        }
        if !problems.is_empty() {
            return Err(BadFile {
                path: scenario.path.clone(),
                text: fs::read_to_string(&scenario.path).unwrap_or_default(),
                problems,
            });
        }
    }
    let files = all.into_iter().map(|(guest, host)| PayloadFile {
        host,
        guest,
        // Whatever it is on the host: a script that was not made executable
        // is one more thing to stumble over.
        mode: 0o755,
    });
    Ok(files.collect())
}

/// Its path, its name in the guest and its size.
fn found(dir: &Path, file: &HostFile) -> Result<(PathBuf, String, u64), Problem> {
    let path = dir.join(&file.written);
    let problem = |message: String, expected: &str| Problem {
        span: file.span.clone(),
        message,
        expected: Some(expected.to_owned()),
        nearest: None,
    };
    let opened = fs::File::open(&path).and_then(|opened| opened.metadata());
    let meta = opened.map_err(|error| {
        problem(
            format!("cannot read {}: {error}", path.display()),
            "a file that exists before the run (is it built?); a relative path starts at the \
             directory of this file",
        )
    })?;
    if !meta.is_file() {
        return Err(problem(
            format!("{} is no regular file", path.display()),
            "files, one by one; a directory can be brought as a tar archive",
        ));
    }
    Ok((path, file.name().to_owned(), meta.len()))
}

fn too_large(file: &HostFile, bytes: u64) -> Problem {
    Problem {
        span: file.span.clone(),
        message: format!(
            "the files of this run have {} MiB with this one, and the guest's disk for them takes {}",
            bytes >> 20,
            BYTES_MAX >> 20
        ),
        expected: Some("smaller files; `strip` takes debugging symbols out of a binary".into()),
        nearest: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scenario::{ImageName, Profile, Scenario};

    fn files(dir: &Path, line: &str) -> Result<Vec<PayloadFile>, String> {
        let text = format!(
            "about = \"x\"\n[matrix]\nimage = [\"debian13\"]\nlower = [\"ext4\"]\n\
             mount = [\"native\"]\n[workload]\n{line}\nrun = [\"/bin/true\"]\n"
        );
        let path = dir.join("mine.toml");
        fs::write(&path, &text).expect("written");
        let images = [ImageName::new("debian13")];
        let scenario = Scenario::parse(&path, &text, &images).expect("right");
        let cases = Arc::new(scenario).cases(Profile::Smoke);
        payload_files(&cases).map_err(|bad| bad.to_string())
    }

    #[test]
    fn files_lie_beside_each_other_whatever_their_names() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("bin")).expect("made");
        for name in ["bin/my store", "bin/größe", "x"] {
            fs::write(dir.path().join(name), name).expect("written");
        }
        let absolute = dir.path().join("x").display().to_string();
        let line = format!("files = [\"bin/my store\", \"bin/größe\", \"{absolute}\"]");
        let found = files(dir.path(), &line).expect("found");
        let guest: Vec<_> = found
            .iter()
            .map(|f| f.guest.display().to_string())
            .collect();
        let at = |name: &str| format!("programs/mine/{name}");
        assert_eq!(guest, [at("größe"), at("my store"), at("x")]);
        assert_eq!(found[1].host, dir.path().join("bin/my store"));
    }

    #[test]
    fn what_cannot_be_brought_is_named_with_its_place_and_a_cure() {
        let dir = tempfile::tempdir().expect("a directory");
        let said = files(dir.path(), "files = [\"absent\"]").expect_err("absent");
        for word in ["mine.toml:7:10", "absent: No such file", "is it built?"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        fs::create_dir(dir.path().join("d")).expect("made");
        let said = files(dir.path(), "files = [\"d\"]").expect_err("a directory");
        assert!(
            said.contains("no regular file") && said.contains("tar"),
            "{said}"
        );
        let huge = fs::File::create(dir.path().join("huge")).expect("made");
        huge.set_len(BYTES_MAX + 1).expect("set");
        let said = files(dir.path(), "files = [\"huge\"]").expect_err("too large");
        assert!(said.contains("MiB") && said.contains("strip"), "{said}");
    }
}
