//! From a file's text to a [`Scenario`], or to everything that is wrong with it.

mod builtin;
mod complaints;
pub(super) mod diagnostic;
mod parts;
mod plot;
mod power_cut;
mod stores;
#[cfg(test)]
mod tests;
mod user;

use std::{path::Path, string::FromUtf8Error};

use toml::Spanned;

use self::complaints::Complaints;
use super::{
    BadFile, Cache, Disk, Door, Expect, ImageName, Named, OracleName, Problem, Profile, Scenario,
    ScenarioName, Story,
    names::{NAME_RULE, name_problem, named},
    raw::{RawExpect, RawScenario},
};

/// Make sense of a scenario file.
pub(super) fn scenario(path: &Path, text: &str, images: &[ImageName]) -> Result<Scenario, BadFile> {
    let bad = |mut problems: Vec<Problem>| {
        // The same complaint comes once from each profile.
        problems.sort_by(|a, b| {
            (a.span.start, a.span.end, &a.message).cmp(&(b.span.start, b.span.end, &b.message))
        });
        problems.dedup();
        BadFile {
            path: path.to_owned(),
            text: text.to_owned(),
            problems,
        }
    };
    let raw: RawScenario =
        toml::from_str(text).map_err(|error| bad(vec![complaints::of_toml(&error)]))?;
    let mut complaints = Complaints::default();
    let name = file_name(path, &mut complaints);
    match understand(path, name, &raw, images, &mut complaints) {
        Some(scenario) if complaints.is_empty() => Ok(scenario),
        _ => Err(bad(complaints.into_problems())),
    }
}

/// A file that is not even text.
pub(super) fn not_utf8(path: &Path, error: &FromUtf8Error) -> BadFile {
    let at = error.utf8_error().valid_up_to();
    BadFile {
        path: path.to_owned(),
        text: String::from_utf8_lossy(error.as_bytes()).into_owned(),
        problems: vec![Problem {
            span: at..at + 1,
            message: "the file is not UTF-8".into(),
            expected: Some("TOML, which is UTF-8 text".into()),
            nearest: None,
        }],
    }
}

fn file_name(path: &Path, complaints: &mut Complaints) -> Option<ScenarioName> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let Some(problem) = name_problem(&stem) else {
        return Some(ScenarioName::new(stem));
    };
    let message = format!("the file's name `{stem}` cannot be a scenario's name: {problem}");
    complaints.add(0..0, message).expected(NAME_RULE);
    None
}

/// Every part is looked at even where an earlier one is wrong, so that one run
/// shows all that is wrong with the file.
fn understand(
    path: &Path,
    name: Option<ScenarioName>,
    raw: &RawScenario,
    images: &[ImageName],
    complaints: &mut Complaints,
) -> Option<Scenario> {
    let about = about(raw, complaints);
    let disk = parts::disk(raw.disk.as_ref(), complaints);
    let taken_for = parts::taken_for(raw.disk.as_ref(), complaints);
    let matrix = parts::matrix(raw, images, complaints);
    if let (Some(matrix), Some(disk)) = (&matrix, &disk) {
        parts::fits(matrix, disk, raw, complaints);
    }
    let stories =
        profiles(raw, complaints).and_then(|profiles| plot::stories(raw, &profiles, complaints));
    let story = stories.as_ref().and_then(|stories| stories.first());
    let expect = match &raw.expect {
        Some(raw) => expect(raw, story.map(|(_, story)| story), complaints),
        None => Some(Expect::Pass),
    };
    let door = match &raw.expect {
        Some(raw) => door(
            raw.get_ref(),
            expect,
            story.map(|(_, story)| story),
            complaints,
        ),
        None => Some(None),
    };
    let damage = match story {
        Some((_, Story::Distribution(program))) => program.damage,
        Some((_, Story::Conformance(conformance))) => conformance.damage,
        _ => false,
    };
    if damage && expect == Some(Expect::Pass) {
        damage_is_a_control(raw, complaints);
    }
    if let (Some(disk), Some((_, story))) = (&disk, story) {
        lie_is_seen(raw, disk, story, complaints);
    }
    Some(Scenario {
        name: name?,
        path: path.to_owned(),
        about: about?,
        matrix: matrix?,
        disk: disk?,
        taken_for: taken_for?,
        expect: expect?,
        door: door?,
        stories: stories?,
    })
}

fn about(raw: &RawScenario, complaints: &mut Complaints) -> Option<String> {
    let example = "`about = \"…\"`: one line that says what the scenario shows";
    let Some(about) = &raw.about else {
        complaints.add(0..0, "`about` is missing").expected(example);
        return None;
    };
    let text = about.get_ref().trim();
    if text.is_empty() || text.contains('\n') {
        complaints
            .add(about.span(), "`about` is not one line of text")
            .expected(example);
        return None;
    }
    Some(text.to_owned())
}

fn profiles(raw: &RawScenario, complaints: &mut Complaints) -> Option<Vec<Profile>> {
    let profiles = match &raw.profile {
        None => Profile::ALL.to_vec(),
        Some(names) => {
            complaints.distinct(names, "profile", |name, complaints| complaints.one_of(name))?
        }
    };
    for (profile, sizes) in [
        (Profile::Smoke, &raw.smoke),
        (Profile::Full, &raw.full),
        (Profile::Nightly, &raw.nightly),
    ] {
        if let Some(sizes) = sizes
            && !profiles.contains(&profile)
        {
            let message = format!("the scenario does not run in `{profile}`");
            complaints.add(sizes.span(), message).expected(format!(
                "`{profile}` in the array `profile`, or no such table"
            ));
        }
    }
    Some(profiles)
}

named! {
    /// What `verdict` may say.
    enum Wanted, "verdict" {
        /// All is well.
        Pass = "pass",
        /// The oracle named by `caught_by` complains.
        Fail = "fail",
    }
}

fn expect(
    raw: &Spanned<RawExpect>,
    story: Option<&Story>,
    complaints: &mut Complaints,
) -> Option<Expect> {
    let span = raw.span();
    let raw = raw.get_ref();
    let Some(verdict) = &raw.verdict else {
        complaints
            .add(span, "`verdict` is missing")
            .expected("`verdict = \"pass\"`, or `verdict = \"fail\"` with `caught_by`");
        return None;
    };
    match (complaints.one_of(verdict)?, &raw.caught_by) {
        (Wanted::Pass, None) => Some(Expect::Pass),
        (Wanted::Pass, Some(by)) => {
            complaints
                .add(by.span(), "a scenario that passes is caught by nothing")
                .expected("`verdict = \"fail\"` for a control, or no `caught_by`");
            None
        }
        (Wanted::Fail, None) => {
            complaints
                .add(
                    verdict.span(),
                    "a control names the oracle that must catch it",
                )
                .expected("`caught_by = \"…\"` beside `verdict = \"fail\"`");
            None
        }
        (Wanted::Fail, Some(by)) => {
            let oracle: OracleName = complaints.one_of(by)?;
            let judges = story.map(Story::oracles)?;
            if !judges.contains(&oracle) {
                complaints
                    .add(
                        by.span(),
                        format!("the oracle `{oracle}` does not judge this workload"),
                    )
                    .expected(diagnostic::listed(judges.iter().map(|o| o.name())));
                return None;
            }
            Some(Expect::Caught(oracle))
        }
    }
}

/// The door that a control must be laid at: only a power cut has evidence for one.
fn door(
    raw: &RawExpect,
    expect: Option<Expect>,
    story: Option<&Story>,
    complaints: &mut Complaints,
) -> Option<Option<Door>> {
    let Some(written) = &raw.door else {
        return Some(None);
    };
    if let (Some(Expect::Caught(_)), Some(Story::PowerCut(..)) | None) = (expect, story) {
        return complaints.one_of(written).map(Some);
    }
    complaints
        .add(
            written.span(),
            "only what a power cut broke is laid at a door",
        )
        .expected("`verdict = \"fail\"` and a table `[power-cut]`, or no `door`");
    None
}

/// What was damaged on purpose cannot be expected to be whole.
fn damage_is_a_control(raw: &RawScenario, complaints: &mut Complaints) {
    let workload = raw.workload.as_ref().map(Spanned::get_ref);
    let damage = workload.and_then(|workload| workload.damage.as_ref());
    complaints
        .add(
            damage.map_or(0..0, Spanned::span),
            "a run that is damaged on purpose is a control",
        )
        .expected("`[expect]` with `verdict = \"fail\"` and `caught_by`");
}

/// A disk that lies about flushes behaves like an honest one until its power
/// goes, so a run without a cut would prove nothing.
fn lie_is_seen(raw: &RawScenario, disk: &Disk, story: &Story, complaints: &mut Complaints) {
    let cache = raw.disk.as_ref().and_then(|disk| disk.cache.as_ref());
    if let Some(cache) = cache
        && disk.cache == Cache::LiesOnFlush
        && !matches!(story, Story::PowerCut(..))
    {
        complaints
            .add(
                cache.span(),
                "a disk that lies on flush shows nothing while its power stays on",
            )
            .expected("a table `[power-cut]`, or another cache");
    }
}
