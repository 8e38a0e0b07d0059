//! A program makes promises on a recorded disk until the plug is pulled; then
//! every chosen crash state is checked against what was promised by then.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use plugpull_disk::{CutTrigger, End, Recording, View};
use plugpull_protocol::{Promise, WorkloadRequest, syncs::Note, workload::MARK_CHECKPOINT_END};

use super::{Stage, capsules, cuts::Timeline, everywhere, explore, user};
use crate::{
    base::{Kind, cluster_dir},
    oracle::Ledger,
    scenario::{Count, CutPoint as CutAt, Cuts, Cuttable, PowerCut},
    session::Session,
    sharing,
};

/// From the workload's start until it is worth cutting.
const RIPE_TIMEOUT: Duration = Duration::from_secs(300);
/// From there to the cut: a few hundred requests.
const CUT_TIMEOUT: Duration = Duration::from_secs(120);
/// The workload's own end, far behind every cut.
const LOAD_MS: u64 = 3_600_000;
/// Acknowledgements that a run must have before it is cut.
const RIPE_ACKS: u64 = 150;
/// Checkpoints likewise.
const RIPE_CHECKPOINTS: u64 = 3;
/// WAL segments that these must have recycled: only then do data files and old
/// segments take part in recovery as they do in a server that runs for long.
const RIPE_RECYCLED: u64 = 1;
/// How many further requests the seed may choose the cut among.
const CUT_WINDOW: u64 = 400;
const CHECKPOINT_EVERY_MS: u64 = 700;
const READER_EVERY_MS: u64 = 100;
const SERVER_TIMEOUT: Duration = Duration::from_secs(120);

/// The session that is recorded.
const LOAD: &str = "load";
/// The page program: so many single-page writes, over so many pages.
pub(super) const PAGE_WRITES: u32 = 4_000;
pub(super) const PAGES: u32 = 64;

pub(super) fn run(stage: &mut Stage<'_>, workload: &Cuttable, cut: &PowerCut) -> Result<()> {
    let kind = match workload {
        Cuttable::PostgresLedger(load) => Kind::Cluster {
            connections: load.connections.0.get(),
        },
        Cuttable::PageFsync | Cuttable::Program(_) => Kind::Empty,
    };
    let given = stage.bed.setup().sharing.recordings.get(&stage.case.name);
    let (name, base, recording) = match given {
        Some(given) => sharing::open(given)?,
        None => {
            let disk = stage.base(kind)?;
            let base = disk.view()?;
            let recording = match workload {
                Cuttable::Program(program) => {
                    let all = (LOAD, &program.all_operations());
                    user::record(stage, all, program, cut, base.clone())?
                }
                _ => record(stage, workload, cut, base.clone())?,
            };
            (disk.name(), base, recording)
        }
    };
    let timeline = Timeline::of(&recording);
    // Said before anything is explored: a run without a ledger proves nothing.
    Ledger::at(timeline.records(), recording.last_seq().0)?;
    if let Cuttable::Program(program) = workload {
        user::has_spoken(program, &timeline)?;
    }
    if stage.counts_the_whole() {
        count_timeline(stage, &timeline);
    }
    ensure!(
        matches!(recording.end(), End::Complete),
        "the recording is truncated and proves nothing: {:?}",
        recording.end()
    );
    let setup = stage.bed.setup();
    if setup.sharing.record_only {
        let of = (&stage.case.name, setup.seed, setup.profile);
        return sharing::keep(of, (&name, &base, &recording), stage.dir);
    }
    let plan = explore::Plan {
        base: &base,
        recording: &recording,
        timeline: &timeline,
        states: cut.states.get(),
    };
    let told = match &cut.cuts {
        Cuts::Everywhere => everywhere::run(stage, workload, &plan, cut),
        Cuts::Seeded(count) => {
            let cuts = timeline.choose(count.get(), stage.seed);
            explore::run(stage, workload, &plan, &cuts)
        }
        Cuts::At(_) => explore::run(stage, workload, &plan, &[timeline.end()]),
    };
    // Also of what was found before something went wrong.
    capsules::keep(stage, &name, &plan);
    told
}

/// Run the workload until its power is cut, and keep the recording.
fn record(
    stage: &mut Stage<'_>,
    workload: &Cuttable,
    cut: &PowerCut,
    base: View,
) -> Result<Recording> {
    let mut session = stage.session(LOAD, base, true)?;
    session.mount_lower(&stage.case.lower)?;
    let at = session.mount(&stage.case.mount)?;
    session.watch_syncs()?;
    let start = Instant::now();
    if let Cuts::At(at) = &cut.cuts {
        session.disk().arm(trigger(at)?)?;
    }
    session.begin(request(&session, workload, at, stage.seed))?;
    if !matches!(cut.cuts, Cuts::At(_)) {
        ripen(&session, workload, stage.case.scenario.is_control())?;
        let further = 1 + fastrand::Rng::with_seed(stage.seed).u64(0..CUT_WINDOW);
        let now = session.disk().counts().recorded_requests();
        session.disk().arm(CutTrigger::Request(now + further))?;
    }
    let disk = session.disk().clone();
    session
        .guest()
        .wait_until(
            "the power cut",
            stage.bed.scale(CUT_TIMEOUT) + cut.cuts.named_time(),
            || disk.end().is_some(),
        )
        .context("run the workload until its power is cut")?;
    stage.spent("load", start);
    stage.outcome.warnings = session.guest().warnings();
    session.pull_the_plug()?;
    Recording::open(&stage.log(LOAD))
}

/// What has the power go there; a time counts from now.
pub(super) fn trigger(at: &CutAt) -> Result<CutTrigger> {
    Ok(match at {
        CutAt::TimeMs(ms) => CutTrigger::Time(Instant::now() + Duration::from_millis(*ms)),
        CutAt::Request(n) => CutTrigger::Request(*n),
        CutAt::Flush(n) => CutTrigger::Flush(*n),
        CutAt::Mark(text) => CutTrigger::Mark(mark_prefix(text)?),
    })
}

/// How a mark that begins with this text begins in the disk's log, which holds
/// promises as JSON.
fn mark_prefix(text: &str) -> Result<Vec<u8>> {
    let mark = Promise::Mark {
        text: text.to_owned(),
    };
    let mut json = serde_json::to_string(&mark)?;
    let closed = json.trim_end_matches(['"', '}']).len();
    json.truncate(closed);
    Ok(json.into_bytes())
}

fn request(session: &Session<'_>, workload: &Cuttable, at: &str, seed: u64) -> WorkloadRequest {
    match workload {
        Cuttable::PostgresLedger(load) => WorkloadRequest::PostgresLedger {
            dir: cluster_dir(at),
            connections: load.connections.0.get(),
            seed,
            conf: load.settings(),
            transactions: u64::from(u32::MAX),
            load_ms: LOAD_MS,
            checkpoint_every_ms: CHECKPOINT_EVERY_MS,
            reader_every_ms: READER_EVERY_MS,
            timeout_ms: session.timeout_ms(SERVER_TIMEOUT),
        },
        Cuttable::PageFsync | Cuttable::Program(_) => WorkloadRequest::PageFsync {
            dir: format!("{at}/pages"),
            writes: PAGE_WRITES,
            pages: PAGES,
            seed,
        },
    }
}

/// Wait until a cut would mean something: enough acknowledged, checkpoints
/// passed, segments recycled.
fn ripen(session: &Session<'_>, workload: &Cuttable, control: bool) -> Result<()> {
    let progress = session.progress();
    let (acks, checkpoints, recycled) = match workload {
        // What a control loses, it loses without checkpoints too.
        Cuttable::PostgresLedger(_) if control => (RIPE_ACKS, 1, 0),
        Cuttable::PostgresLedger(_) => (RIPE_ACKS, RIPE_CHECKPOINTS, RIPE_RECYCLED),
        Cuttable::PageFsync | Cuttable::Program(_) => (RIPE_ACKS, 0, 0),
    };
    session
        .guest()
        .wait_until(
            "acknowledgements and checkpoints of the load",
            session.scale(RIPE_TIMEOUT),
            || {
                progress.acks() >= acks
                    && progress.checkpoints() >= checkpoints
                    && progress.recycled() >= recycled
            },
        )
        .with_context(|| {
            format!(
                "the load had {} of {acks} acknowledgements, {} of {checkpoints} checkpoints and \
                 {} of {recycled} recycled WAL segments",
                progress.acks(),
                progress.checkpoints(),
                progress.recycled()
            )
        })
}

pub(super) fn count_timeline(stage: &mut Stage<'_>, timeline: &Timeline) {
    let mut recycled = 0;
    for (_, promise) in &timeline.promises {
        match promise {
            Promise::Ack { .. } => stage.count(Count::Acks, 1),
            Promise::Served { .. } => stage.count(Count::Served, 1),
            Promise::Mark { text } => {
                if let Some(so_far) = checkpoint_end(text) {
                    stage.count(Count::Checkpoints, 1);
                    recycled = so_far;
                }
            }
            Promise::Begin { .. } | Promise::Garbled { .. } => {}
        }
    }
    stage.count(Count::WalRecycled, recycled);
    stage.count(Count::Writes, timeline.volatile_writes());
}

/// The number of WAL segments recycled so far, as the mark at the end of a
/// checkpoint has it.
fn checkpoint_end(text: &str) -> Option<u64> {
    let rest = text.strip_prefix(MARK_CHECKPOINT_END)?;
    rest.rsplit(' ').next()?.parse().ok()
}

/// What a running load has said so far, counted where its promises arrive.
#[derive(Debug, Default)]
pub struct Progress {
    promises: AtomicU64,
    acks: AtomicU64,
    checkpoints: AtomicU64,
    recycled: AtomicU64,
}

impl Progress {
    /// Take note of a promise.
    pub fn saw(&self, promise: &Promise) {
        if Note::of(promise).is_some() {
            return;
        }
        self.promises.fetch_add(1, Ordering::Relaxed);
        match promise {
            Promise::Ack { .. } => {
                self.acks.fetch_add(1, Ordering::Relaxed);
            }
            Promise::Mark { text } => {
                if let Some(recycled) = checkpoint_end(text) {
                    self.checkpoints.fetch_add(1, Ordering::Relaxed);
                    self.recycled.store(recycled, Ordering::Relaxed);
                }
            }
            Promise::Begin { .. } | Promise::Served { .. } | Promise::Garbled { .. } => {}
        }
    }

    /// Everything that was said.
    pub fn promises(&self) -> u64 {
        self.promises.load(Ordering::Relaxed)
    }

    /// Acknowledgements.
    pub fn acks(&self) -> u64 {
        self.acks.load(Ordering::Relaxed)
    }

    /// Checkpoints that returned.
    pub fn checkpoints(&self) -> u64 {
        self.checkpoints.load(Ordering::Relaxed)
    }

    /// WAL segments recycled.
    pub fn recycled(&self) -> u64 {
        self.recycled.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_in_the_log_by_how_it_begins() {
        let prefix = mark_prefix("checkpoint-begin").expect("encoded");
        let logged = |text: &str| {
            serde_json::to_vec(&Promise::Mark {
                text: text.to_owned(),
            })
            .expect("encoded")
        };
        assert!(logged("checkpoint-begin 3").starts_with(&prefix));
        assert!(!logged("checkpoint-end 3").starts_with(&prefix));
    }

    #[test]
    fn recycled_segments_are_read_off_the_mark() {
        assert_eq!(checkpoint_end("checkpoint-end 7 recycled 12"), Some(12));
        assert_eq!(checkpoint_end("checkpoint-begin 7"), None);
    }
}
