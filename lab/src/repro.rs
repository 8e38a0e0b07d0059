//! From a capsule to the case that judges its states, and from what is seen now
//! to what a person is told of it.

use std::{fmt::Write as _, path::Path, sync::Arc};

use anyhow::{Context, Result};
use plugpull_vm::cache::Home;

use crate::{
    capsule::{self, BadCapsule, Manifest, State, Unpacked, Words},
    programs,
    report::Verdict,
    runner::Again,
    scenario::{self, Case, Cuttable, ImageName, Judge, Scenario, Story},
    testbed::Setup,
    text::push_wrapped,
};

/// The case that a capsule's states are judged by: its own, with the programs
/// that came with it; or that of another scenario file, with the programs that
/// this names, as they are now.
///
/// # Errors
/// [`BadCapsule`] or [`scenario::BadFile`] when it does not fit what is here.
pub fn case(capsule: &Unpacked, home: &Home, instead: Option<&Path>) -> Result<Case> {
    let manifest = capsule.manifest();
    let mut images = scenario::image_names(&home.recipes)
        .with_context(|| format!("list the images in {}", home.recipes.display()))?;
    if !images.contains(&manifest.image.name) {
        let names: Vec<&str> = images.iter().map(ImageName::as_str).collect();
        let why = format!(
            "it wants the image {}, and {} has {}",
            manifest.image.name,
            home.recipes.display(),
            names.join(", ")
        );
        return Err(capsule.bad(why).into());
    }
    let case = match instead {
        Some(file) => another(file, manifest, &images)?,
        None => {
            images.extend(manifest.images.iter().cloned());
            own(capsule, &images)?
        }
    };
    if !matches!(case.story, Story::PowerCut(..)) {
        return Err(capsule.bad("its scenario cuts no power").into());
    }
    let size = case.scenario.disk.size.0;
    if size != manifest.base.size {
        let why = format!(
            "its disk has {} bytes, and that of the scenario {size}",
            manifest.base.size
        );
        return Err(capsule.bad(why).into());
    }
    Ok(case)
}

fn own(capsule: &Unpacked, images: &[ImageName]) -> Result<Case> {
    let manifest = capsule.manifest();
    let path = format!("{}.toml", manifest.scenario);
    let scenario = Scenario::parse(Path::new(&path), &capsule.scenario()?, images)?;
    let cases = Arc::new(scenario).cases(manifest.profile);
    let found = cases.into_iter().find(|case| case.name == manifest.case);
    let mut case = found.ok_or_else(|| {
        let (name, profile) = (&manifest.case, manifest.profile);
        capsule.bad(format!(
            "its scenario has no case {name} in the profile {profile}"
        ))
    })?;
    if let Story::PowerCut(Cuttable::Program(program), _) = &mut case.story {
        for file in programs::all_of_mut(program) {
            let path = capsule.file(file.name());
            let path = path.to_str().context("the path of a run is no UTF-8")?;
            file.written = path.to_owned();
        }
    }
    Ok(case)
}

fn another(file: &Path, manifest: &Manifest, images: &[ImageName]) -> Result<Case> {
    let loaded = scenario::load_file(file, images)
        .map_err(|error| BadCapsule::new(file, error.to_string()))?;
    let cases = Arc::new(loaded.scenario?).cases(manifest.profile);
    // What stands behind the scenario's name: image, lower filesystem, mount.
    let rest = |name: &scenario::CaseName| {
        let rest = name.as_str().split_once("::");
        rest.map(|(_, rest)| rest.to_owned())
    };
    let wanted = rest(&manifest.case);
    let found = cases.into_iter().find(|case| rest(&case.name) == wanted);
    found.ok_or_else(|| {
        let why = format!(
            "it has no case {} in the profile {}, which the capsule is of",
            wanted.unwrap_or_default(),
            manifest.profile
        );
        BadCapsule::new(file, why).into()
    })
}

/// What is another here than where the capsule was made, and may be why a state
/// looks different.
pub fn differences(manifest: &Manifest, case: &Case, setup: &Setup) -> Vec<String> {
    let (was, versions) = (&manifest.image, &manifest.versions);
    let mut all = Vec::new();
    if let Some(image) = setup.images.get(&case.guest) {
        if image.kernel != was.kernel {
            all.push(format!(
                "the kernel is {}, it was {}",
                image.kernel, was.kernel
            ));
        } else if image.packages_hash != was.packages_hash {
            let name = &was.name;
            all.push(format!("the image {name} has other packages than it had"));
        }
    }
    let own = env!("CARGO_PKG_VERSION");
    for (what, is, was) in [
        ("QEMU", &*setup.qemu.version, &versions.qemu),
        ("plugpull", own, &versions.plugpull),
    ] {
        if is != was {
            all.push(format!("{what} is {is}, it was {was}"));
        }
    }
    all
}

/// What a state came to when it was looked at again.
pub struct Shown<'a> {
    /// What the capsule says.
    pub manifest: &'a Manifest,
    /// Of which state.
    pub state: &'a State,
    /// What judged it.
    pub case: &'a Case,
    /// Whether that is the scenario of the capsule.
    pub own: bool,
    /// What came of it.
    pub again: &'a Again,
}

impl Shown<'_> {
    /// Fail while the failure shows; pass when it does not any more.
    pub fn verdict(&self) -> Verdict {
        match (&self.again.cut_short, self.again.findings.is_empty()) {
            (Some(_), _) => Verdict::Infra,
            (None, true) => Verdict::Pass,
            (None, false) => Verdict::Fail,
        }
    }

    /// All of it, for a person.
    pub fn text(&self) -> String {
        let (was, is) = (&self.state.findings, &self.again.findings);
        let id = capsule::id(&self.manifest.case, &self.state.id);
        let mut out = format!("{id}\n");
        push_wrapped(&mut out, &self.case.scenario.about, "  ", "  ");
        push_words(&mut out, is);
        let same = is == was;
        if same {
            for line in &self.state.story {
                push_wrapped(&mut out, line, "    ", "      ");
            }
        }
        if let Some(why) = &self.again.cut_short {
            push_wrapped(&mut out, &format!("infra: {why}"), "", "  ");
        } else if is.is_empty() {
            let _ = writeln!(out, "pass: it does not fail any more; it was");
            push_words(&mut out, was);
        } else if same {
            let _ = writeln!(out, "fail: the same failure, word for word");
        } else {
            let which = match is[0].oracle == was.first().map_or(is[0].oracle, |w| w.oracle) {
                true => "the same oracle, in other words",
                false => "another failure",
            };
            let _ = writeln!(out, "fail: {which}; it was");
            push_words(&mut out, was);
        }
        if !self.own && !is.is_empty() && !self.runs_a_program() {
            push_wrapped(
                &mut out,
                "note: the disk is as the program wrote it when it was recorded, and nothing of \
                 the program runs when it is judged; whether one that writes otherwise fails \
                 takes a new run: cargo xtask test-vm",
                "",
                "  ",
            );
        }
        out
    }

    /// Whether the program opens what it left, or one of its own does.
    fn runs_a_program(&self) -> bool {
        let Story::PowerCut(Cuttable::Program(program), _) = &self.case.story else {
            return true;
        };
        !matches!(program.judge, Judge::Files { .. })
    }
}

fn push_words(out: &mut String, findings: &[Words]) {
    for words in findings {
        for (n, line) in words.detail.lines().enumerate() {
            // A program's own output may be among them.
            let safe = |c: char| if c.is_control() { '\u{fffd}' } else { c };
            let line: String = line.chars().map(safe).collect();
            let line = match n {
                0 => format!("{}: {line}", words.oracle),
                _ => format!("  {line}"),
            };
            push_wrapped(out, &line, "    ", "      ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capsule::{
            Capsule,
            tests::{forged, made, with_manifest},
        },
        scenario::OracleName,
    };

    /// A capsule, taken apart below a directory.
    fn unpacked(dir: &Path, change: impl FnOnce(&mut Manifest)) -> Unpacked {
        let made = made(dir);
        let path = forged(&made, |members| with_manifest(members, change));
        let to = dir.join("unpacked");
        std::fs::create_dir(&to).expect("made");
        let unpacked = Capsule::open(&path).and_then(|capsule| capsule.unpack(&to));
        unpacked.unwrap_or_else(|error| panic!("{error:#}"))
    }

    fn refused(change: impl FnOnce(&mut Manifest), instead: Option<&str>) -> String {
        let dir = tempfile::tempdir().expect("a directory");
        let capsule = unpacked(dir.path(), change);
        let home = Home::find().expect("a workspace");
        let file = instead.map(|text| {
            let path = dir.path().join("mine.toml");
            std::fs::write(&path, text).expect("written");
            path
        });
        let error = case(&capsule, &home, file.as_deref()).expect_err("refused");
        assert!(error.is::<BadCapsule>(), "{error:#}");
        format!("{error:#}")
    }

    #[test]
    fn what_does_not_fit_here_is_refused_by_name() {
        let image = |manifest: &mut Manifest| manifest.image.name = ImageName::new("debian99");
        let said = refused(image, None);
        assert!(said.contains("wants the image debian99, and "), "{said}");
        assert!(said.contains("debian12, debian13"), "{said}");
        let said = refused(|_| {}, None);
        assert!(
            said.contains("65536 bytes, and that of the scenario 67108864"),
            "{said}"
        );
        let profile = |manifest: &mut Manifest| manifest.profile = scenario::Profile::Nightly;
        let name = |manifest: &mut Manifest| manifest.case = scenario::CaseName::new("a::b::c::d");
        let said = refused(name, None);
        assert!(
            said.contains("no case a::b::c::d in the profile smoke"),
            "{said}"
        );
        let text = "about = \"x\"\n[matrix]\nimage = [\"debian13\"]\nlower = [\"xfs\"]\n\
                    mount = [\"native\"]\n[workload]\nbuiltin = \"page-fsync\"\n\
                    [power-cut]\nstates = 30\n";
        let said = refused(profile, Some(text));
        assert!(
            said.contains("mine.toml: it has no case debian13::ext4::native"),
            "{said}"
        );
    }

    #[test]
    fn the_programs_are_those_that_came_along() {
        let dir = tempfile::tempdir().expect("a directory");
        let capsule = unpacked(dir.path(), |_| {});
        let images = &capsule.manifest().images;
        let case = own(&capsule, images).expect("a case");
        let files = programs::payload_files(&[case]).expect("found");
        let places: Vec<_> = files
            .iter()
            .map(|file| (&*file.guest, &*file.host))
            .collect();
        let here = capsule.file("größe");
        assert_eq!(places, [(Path::new("programs/notes/größe"), &*here)]);
    }

    /// What is said and how it ends, when the oracles now say this.
    fn shown(now: &[(OracleName, &str)], cut_short: Option<&str>) -> (String, Verdict) {
        let dir = tempfile::tempdir().expect("a directory");
        let capsule = unpacked(dir.path(), |_| {});
        let manifest = capsule.manifest();
        let words = |(oracle, detail): &(OracleName, &str)| Words {
            oracle: *oracle,
            detail: (*detail).to_owned(),
        };
        let again = Again {
            findings: now.iter().map(words).collect(),
            cut_short: cut_short.map(str::to_owned),
            waited: std::time::Duration::ZERO,
        };
        let shown = Shown {
            manifest,
            state: &manifest.states[0],
            case: &own(&capsule, &manifest.images).expect("a case"),
            own: false,
            again: &again,
        };
        (shown.text(), shown.verdict())
    }

    #[test]
    fn it_is_said_whether_it_is_the_same_failure() {
        let (files, recovery) = (OracleName::Files, OracleName::Recovery);
        let then = (files, "note-1: is absent");
        let (text, verdict) = shown(&[then], None);
        assert_eq!(verdict, Verdict::Fail);
        for line in [
            "notes::debian13::ext4::native@e0-",
            "\n    files: note-1: is absent\n    it is enough to lose one\n",
            "\nfail: the same failure, word for word\nnote: ",
        ] {
            assert!(text.contains(line), "{line:?} is not in: {text}");
        }
        let (text, verdict) = shown(&[(files, "note-2: is empty")], None);
        assert_eq!(verdict, Verdict::Fail);
        let line = "fail: the same oracle, in other words; it was\n    files: note-1";
        assert!(text.contains(line) && !text.contains("enough"), "{text}");
        let (text, verdict) = shown(&[(recovery, "does\n\u{1b}[2Jnot mount")], None);
        assert_eq!(verdict, Verdict::Fail);
        assert!(text.contains("fail: another failure; it was"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        let (text, verdict) = shown(&[], None);
        assert_eq!(verdict, Verdict::Pass);
        assert!(
            text.contains("pass: it does not fail any more; it was\n"),
            "{text}"
        );
    }

    #[test]
    fn of_a_recording_that_breaks_off_nothing_is_more_than_infra() {
        for now in [&[][..], &[(OracleName::Files, "note-1: is absent")]] {
            let (text, verdict) = shown(now, Some("the recording breaks off"));
            assert_eq!(verdict, Verdict::Infra);
            assert!(
                text.contains("\ninfra: the recording breaks off\n"),
                "{text}"
            );
            assert!(
                !text.contains("\nfail:") && !text.contains("\npass:"),
                "{text}"
            );
        }
    }
}
