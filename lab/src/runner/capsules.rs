//! Keeps the crash states that oracles object to, with all that it takes to see
//! them again, in a capsule.
//!
//! That none could be made is no trouble of the run's: what was found stays
//! found, and the report says why there is no capsule.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use plugpull_disk::{CrashState, CutPoint, Keep, PowerCut};
use plugpull_vm::cache::ContentHash;

use super::{Stage, explore::Plan};
use crate::{
    capsule::{
        self, BASE, CONSOLE, Contents, FILES, IMAGE, ImageRef, LOG, Manifest, SCENARIO, SCHEMA,
        Source, State, Versions, Words,
    },
    programs,
    scenario::{Cuttable, OracleName, Scenario, Story},
};

/// How many states one guest's looks may add, beside the first of each oracle.
const NOTED: usize = 100;
/// How many states a capsule has at most.
const STATES_MAX: usize = 2 * NOTED;
/// How much of a console goes in, and of how many guests.
const CONSOLE_BYTES: u64 = 64 << 10;
const CONSOLES: usize = 8;

/// A crash state that oracles objected to.
#[derive(Debug, Clone)]
pub struct Guilty {
    id: String,
    cut: CutPoint,
    keep: Keep,
    /// The event up to which promises count.
    promised_by: u64,
    /// A digest relative to the base.
    content: String,
    findings: Vec<Words>,
}

/// What became of a capsule.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The states in it.
    pub states: BTreeSet<String>,
    /// Why there is none.
    pub why_not: Option<String>,
}

/// Take note of a state that was just judged, if an oracle has objected since the
/// first `before` failures.
pub(super) fn note(
    stage: &mut Stage<'_>,
    before: usize,
    state: &CrashState,
    keep: &Keep,
    promised_by: u64,
) -> Result<()> {
    let words = stage.outcome.failures[before..].iter();
    let findings: Vec<Words> = words
        .map(|failure| Words {
            oracle: failure.oracle,
            detail: failure.detail.clone(),
        })
        .collect();
    if findings.is_empty() {
        return Ok(());
    }
    let noted = &mut stage.outcome.guilty;
    let is_known = |oracle: OracleName| {
        let mut all = noted.iter().flat_map(|guilty| &guilty.findings);
        all.any(|words| words.oracle == oracle)
    };
    if noted.len() < NOTED || findings.iter().any(|words| !is_known(words.oracle)) {
        noted.push(Guilty {
            id: state.id.clone(),
            cut: state.cut,
            keep: keep.clone(),
            promised_by,
            content: state.view.digest()?.to_string(),
            findings,
        });
    }
    Ok(())
}

/// Write the capsule of what was noted. A control that was caught needs none.
pub(super) fn keep(stage: &mut Stage<'_>, base: &str, plan: &Plan<'_>) {
    let needless = stage.control_is_caught() && !stage.bed.setup().keep;
    if stage.outcome.guilty.is_empty() || needless {
        return;
    }
    let start = Instant::now();
    let kept = match write(stage, base, plan) {
        Ok(states) => Kept {
            states,
            why_not: None,
        },
        Err(error) => Kept {
            states: BTreeSet::new(),
            why_not: Some(format!("{error:#}")),
        },
    };
    stage.outcome.capsule = Some(kept);
    stage.spent("capsule", start);
}

fn write(stage: &Stage<'_>, base: &str, plan: &Plan<'_>) -> Result<BTreeSet<String>> {
    let (case, setup) = (stage.case, stage.bed.setup());
    let image = stage.bed.image(&case.guest)?;
    let data = tempfile::NamedTempFile::new_in(stage.dir).context("make a file for the base")?;
    let base = capsule::write_runs(plan.base, base, data.path())?;
    let states = states(stage, plan)?;
    let packages = image.root.with_file_name("manifest.json");
    let mut contents: Contents = vec![
        (SCENARIO.to_owned(), Source::Bytes(text(&case.scenario)?)),
        (IMAGE.to_owned(), Source::File(packages)),
        (BASE.to_owned(), Source::File(data.path().to_owned())),
        (
            LOG.to_owned(),
            Source::File(plan.recording.path().to_owned()),
        ),
    ];
    contents.extend(files(stage)?);
    contents.extend(consoles(stage.dir)?);
    let names = states.iter().map(|state| state.id.clone()).collect();
    let manifest = Manifest {
        schema: SCHEMA,
        versions: Versions {
            plugpull: env!("CARGO_PKG_VERSION").to_owned(),
            qemu: setup.qemu.version.clone(),
            accel: setup.accel.accel().to_string(),
        },
        seed: setup.seed,
        case_seed: stage.seed,
        profile: case.profile,
        case: case.name.clone(),
        scenario: case.scenario.name.clone(),
        images: case.scenario.matrix.images.clone(),
        image: ImageRef {
            name: case.image.clone(),
            kernel: image.kernel.clone(),
            packages_hash: image.packages_hash.clone(),
        },
        base,
        members: Vec::new(),
        states,
    };
    capsule::pack(&stage.dir.join(capsule::FILE), manifest, &contents)?;
    Ok(names)
}

/// The states to keep: those first that the report tells of, in its order.
fn states(stage: &Stage<'_>, plan: &Plan<'_>) -> Result<Vec<State>> {
    let (failures, guilty) = (&stage.outcome.failures, &stage.outcome.guilty);
    let place = |guilty: &&Guilty| {
        let of = |failure: &super::Failure| failure.state.as_ref() == Some(&guilty.id);
        failures.iter().position(of).unwrap_or(usize::MAX)
    };
    let mut chosen: Vec<&Guilty> = guilty.iter().collect();
    chosen.sort_by_key(place);
    let mut seen = BTreeSet::new();
    chosen.retain(|guilty| seen.insert(&guilty.id));
    chosen.truncate(STATES_MAX);
    let mut states = Vec::new();
    for guilty in chosen {
        let told = failures.iter().filter(|failure| {
            let words = |words: &Words| words.detail == failure.detail;
            failure.state.as_ref() == Some(&guilty.id) && !guilty.findings.iter().any(words)
        });
        // What a seed stands for may change with the code that draws.
        let keep = match &guilty.keep {
            drawn @ Keep::Subset(_) => {
                let cut = PowerCut::new(plan.base, plan.recording, guilty.cut)?;
                Keep::Exactly(cut.survivors(drawn)?)
            }
            other => other.clone(),
        };
        states.push(State {
            id: guilty.id.clone(),
            cut: guilty.cut,
            keep,
            promised_by: guilty.promised_by,
            content: guilty.content.clone(),
            findings: guilty.findings.clone(),
            story: told.map(|failure| failure.detail.clone()).collect(),
        });
    }
    Ok(states)
}

/// The scenario file, if it still says what was run.
fn text(scenario: &Scenario) -> Result<Vec<u8>> {
    let path = &scenario.path;
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let same = Scenario::parse(path, &text, &scenario.matrix.images);
    ensure!(
        same.is_ok_and(|same| same == *scenario),
        "{} has changed since the run began",
        path.display()
    );
    Ok(text.into_bytes())
}

/// The user's files, if they still are what the guests had.
fn files(stage: &Stage<'_>) -> Result<Contents> {
    let Story::PowerCut(Cuttable::Program(program), _) = &stage.case.story else {
        return Ok(Contents::new());
    };
    let scenario = &stage.case.scenario;
    let mut files = Contents::new();
    for file in programs::all_of(program) {
        let host = scenario.dir().join(&file.written);
        let had = stage
            .bed
            .setup()
            .brought
            .get(&programs::place(&scenario.name, file.name()));
        ensure!(
            had == Some(&ContentHash::of_file(&host)?),
            "{} has changed since the run began",
            host.display()
        );
        let name = format!("{FILES}{}", file.name());
        if files.iter().all(|(taken, _)| *taken != name) {
            files.push((name, Source::File(host)));
        }
    }
    Ok(files)
}

/// The end of what each guest's console said.
fn consoles(dir: &Path) -> Result<Contents> {
    let mut guests: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.join("console.log").is_file() {
            guests.push(path);
        }
    }
    // The load's guest and the last checkers.
    guests.sort();
    let skipped = guests.len().saturating_sub(CONSOLES);
    let mut consoles = Contents::new();
    for guest in guests.split_off(skipped) {
        let path = guest.join("console.log");
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = fs::File::open(&path)?;
            let bytes = file.metadata()?.len();
            file.seek(SeekFrom::Start(bytes.saturating_sub(CONSOLE_BYTES)))?;
            let mut tail = Vec::new();
            file.take(CONSOLE_BYTES).read_to_end(&mut tail)?;
            Ok(tail)
        };
        let tail = read().with_context(|| format!("read {}", path.display()))?;
        let name = guest.file_name().unwrap_or_default().to_string_lossy();
        consoles.push((format!("{CONSOLE}{name}.log"), Source::Bytes(tail)));
    }
    Ok(consoles)
}
