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
pub fn differences(manifest: &Manifest, setup: &Setup) -> Vec<String> {
    let (was, versions) = (&manifest.image, &manifest.versions);
    let mut all = Vec::new();
    if let Some(image) = setup.images.get(&was.name) {
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
        if !self.own && !is.is_empty() && !self.runs_a_check() {
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

    fn runs_a_check(&self) -> bool {
        let Story::PowerCut(Cuttable::Program(program), _) = &self.case.story else {
            return true;
        };
        matches!(program.judge, Judge::Check { .. })
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
