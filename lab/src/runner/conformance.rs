//! plugpull-conformance makes the same random calls on the mount and on a plain
//! directory of the same lower filesystem, and compares every answer. Then it
//! has fsx write, map and read one file of the mount. Its named checks are a
//! story of their own.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{Exited, Reply, Request};

use super::Stage;
use crate::{
    base::Kind,
    oracle::conformance::{
        Said, as_fsx_wrote, as_the_checks_say, as_the_lower_filesystem, checks_made,
        fsx_operations, said,
    },
    scenario::{Conformance, Count, IoMode, Mount, OracleName, Profile, Server},
    session::{LOWER, Session},
};

const PROGRAM: &str = "/mnt/payload/plugpull-conformance";
const FSX: &str = "/mnt/payload/fsx";
/// The directory that is seen through the mount, and the plain one.
const DIRS: [&str; 2] = ["mount", "plain"];
/// One call to be made wrongly on the side of the mount, for controls.
const PLANT: &str = "truncate-off-by-one";
/// The operation of fsx that is made wrongly, for controls, and the seed with
/// which it is a write whose bytes are read again: with others it may not be.
const INJECT: u32 = 100;
const INJECT_SEED: u64 = 7;
/// It makes a hundred thousand names, which takes minutes on an emulated
/// processor: for the night.
const LONG_CHECK: &str = "huge-directory";
/// All of the named checks.
const CHECKS: Duration = Duration::from_secs(900);
/// A start, and the shrinking of a failure,
const FIXED: Duration = Duration::from_secs(300);
/// each sequence, of which two processors, emulated on a host that was three times as
/// busy as runs make it, took 2 s,
const PER_SEQUENCE: Duration = Duration::from_secs(5);
/// and each operation of fsx, of which they took 15 ms by passthrough, 28 ms with
/// write-back.
const PER_OPERATION: Duration = Duration::from_millis(60);
const QUICK: Duration = Duration::from_secs(30);

pub(super) fn run(stage: &mut Stage<'_>, story: &Conformance) -> Result<()> {
    let (session, at) = open(stage)?;
    compare(stage, &session, story, at)?;
    run_fsx(stage, &session, story, at)?;
    close(stage, session)
}

/// The named checks alone: they take as long as hundreds of sequences.
pub(super) fn named_checks(stage: &mut Stage<'_>) -> Result<()> {
    let (session, at) = open(stage)?;
    let start = Instant::now();
    let exited = exec(&session, checks(stage, at), CHECKS)?;
    stage.spent("checks", start);
    if said(&exited) == Said::Unusable {
        bail!("{}", trouble(&exited));
    }
    stage.count(Count::NamedChecks, checks_made(&exited));
    stage.judged(&[OracleName::Checks], as_the_checks_say(&exited), None);
    close(stage, session)
}

/// A guest with a mount and the two directories, and where the mount is.
fn open<'a>(stage: &mut Stage<'a>) -> Result<(Session<'a>, &'static str)> {
    let base = stage.base(Kind::Empty)?;
    let mut session = stage.session("conformance", base.view()?, false)?;
    session.mount_lower(&stage.case.lower)?;
    let dirs = DIRS.map(|name| format!("{LOWER}/{name}"));
    // The calls are made as several users.
    let make = ["mkdir", "--mode=0755"].map(str::to_owned);
    let made = exec(&session, make.into_iter().chain(dirs.clone()), QUICK)?;
    if !made.success() {
        bail!("make {dirs:?}: {}", made.stderr.trim());
    }
    let at = session.mount(&stage.case.mount)?;
    Ok((session, at))
}

fn close(stage: &mut Stage<'_>, session: Session<'_>) -> Result<()> {
    stage.outcome.warnings = session.guest().warnings();
    session.power_off()?;
    Ok(())
}

fn compare(
    stage: &mut Stage<'_>,
    session: &Session<'_>,
    story: &Conformance,
    at: &str,
) -> Result<()> {
    let start = Instant::now();
    let timeout = FIXED + PER_SEQUENCE * story.sequences.get();
    let exited = exec(session, differential(stage, story, at), timeout)?;
    stage.spent("differential", start);
    let compared = match said(&exited) {
        Said::Equal(compared) | Said::Different(compared) => compared,
        Said::Unusable => bail!("{}", trouble(&exited)),
    };
    stage.count(Count::Sequences, compared.sequences);
    stage.count(Count::Calls, compared.calls);
    let found = as_the_lower_filesystem(&exited);
    stage.judged(&[OracleName::Conformance], found, None);
    Ok(())
}

fn run_fsx(
    stage: &mut Stage<'_>,
    session: &Session<'_>,
    story: &Conformance,
    at: &str,
) -> Result<()> {
    let start = Instant::now();
    let timeout = FIXED + PER_OPERATION * story.operations.get();
    let exited = exec(session, fsx(stage, story, at, timeout), timeout)?;
    stage.spent("fsx", start);
    if said(&exited) == Said::Unusable {
        bail!("{}", trouble(&exited));
    }
    stage.count(Count::FsxOperations, fsx_operations(&exited));
    stage.judged(&[OracleName::Fsx], as_fsx_wrote(&exited), None);
    Ok(())
}

fn trouble(exited: &Exited) -> String {
    let Exited {
        code,
        stdout,
        stderr,
        ..
    } = exited;
    format!(
        "plugpull-conformance ended with {code}: {stdout}{}",
        stderr.trim()
    )
}

fn differential(stage: &Stage<'_>, story: &Conformance, at: &str) -> Vec<String> {
    let [mount, plain] = DIRS;
    // The next sequence has the next seed, so there must be next ones.
    let seed = stage.seed >> 32;
    let mut argv = vec![
        String::from(PROGRAM),
        String::from("differential"),
        format!("--mount={at}/{mount}"),
        format!("--plain={LOWER}/{plain}"),
        format!("--source={LOWER}/{mount}"),
        format!("--seed={seed}"),
        format!("--cases={}", story.sequences),
        format!("--fuse={}", client(&stage.case.mount)),
    ];
    if story.damage {
        argv.push(format!("--plant={PLANT}"));
        // What was planted is known.
        argv.push(String::from("--shrink-seconds=0"));
    }
    argv
}

fn checks(stage: &Stage<'_>, at: &str) -> Vec<String> {
    let [mount, plain] = DIRS;
    let mut argv = vec![
        String::from(PROGRAM),
        String::from("check"),
        format!("--mount={at}/{mount}"),
        format!("--plain={LOWER}/{plain}"),
        format!("--fuse={}", client(&stage.case.mount)),
    ];
    if stage.case.profile != Profile::Nightly {
        argv.push(format!("--except={LONG_CHECK}"));
    }
    argv
}

/// How the guest's kernel works with the server, as plugpull-conformance calls it. By
/// itself plugpull-fs takes the last of them where there is one.
fn client(mount: &Mount) -> &'static str {
    let io = match &mount.server {
        Server::PlugpullFs { io, .. } => io.as_ref(),
        Server::Native | Server::Program { .. } => return "requests",
    };
    match io.map_or("auto", IoMode::as_str) {
        "cached" => "requests",
        "direct" => "direct",
        "writeback" => "writeback",
        _ => "passthrough",
    }
}

fn fsx(stage: &Stage<'_>, story: &Conformance, at: &str, timeout: Duration) -> Vec<String> {
    let seed = match story.damage {
        true => INJECT_SEED,
        false => stage.seed >> 32,
    };
    let mut argv = vec![
        String::from(PROGRAM),
        String::from("fsx"),
        format!("--file={at}/fsx"),
        format!("--ops={}", story.operations),
        format!("--seed={seed}"),
        String::from("--mmap"),
        format!("--fuse={}", client(&stage.case.mount)),
        format!("--program={FSX}"),
        String::from("--artifacts=/run"),
        format!("--deadline-seconds={}", stage.bed.scale(timeout).as_secs()),
    ];
    if story.damage {
        argv.push(format!("--inject={INJECT}"));
    }
    argv
}

fn exec(
    session: &Session<'_>,
    argv: impl IntoIterator<Item = String>,
    timeout: Duration,
) -> Result<Exited> {
    let request = Request::Exec {
        argv: argv.into_iter().collect(),
        env: Vec::new(),
        uid: None,
        timeout_ms: session.timeout_ms(timeout),
    };
    match session
        .guest()
        .request(request, session.scale(timeout * 2))?
    {
        Reply::Exited(exited) => Ok(exited),
        other => bail!("the guest answered a command with {other:?}"),
    }
}
