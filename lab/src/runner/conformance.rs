//! plugpull-conformance makes the same random calls on the mount and on a plain
//! directory of the same lower filesystem, and compares every answer.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use plugpull_protocol::{Exited, Reply, Request};

use super::Stage;
use crate::{
    base::Kind,
    oracle::conformance::{Said, as_the_lower_filesystem, said},
    scenario::{Conformance, Count, OracleName},
    session::{LOWER, Session},
};

const PROGRAM: &str = "/mnt/payload/plugpull-conformance";
/// The directory that is seen through the mount, and the plain one.
const DIRS: [&str; 2] = ["mount", "plain"];
/// One call to be made wrongly on the side of the mount, for controls.
const PLANT: &str = "truncate-off-by-one";
/// A start, and the shrinking of a failure,
const FIXED: Duration = Duration::from_secs(300);
/// and each sequence, on an emulated processor.
const PER_SEQUENCE: Duration = Duration::from_secs(2);
const QUICK: Duration = Duration::from_secs(30);

pub(super) fn run(stage: &mut Stage<'_>, story: &Conformance) -> Result<()> {
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

    let start = Instant::now();
    let [source, plain] = dirs;
    let timeout = FIXED + PER_SEQUENCE * story.sequences.get();
    let exited = exec(&session, command(stage, story, at, source, plain), timeout)?;
    stage.spent("differential", start);
    let compared = match said(&exited) {
        Said::Equal(compared) | Said::Different(compared) => compared,
        Said::Unusable => bail!(
            "plugpull-conformance ended with {}: {}{}",
            exited.code,
            exited.stdout,
            exited.stderr.trim()
        ),
    };
    stage.count(Count::Sequences, compared.sequences);
    stage.count(Count::Calls, compared.calls);
    stage.judged(
        &[OracleName::Conformance],
        as_the_lower_filesystem(&exited),
        None,
    );
    stage.outcome.warnings = session.guest().warnings();
    session.power_off()?;
    Ok(())
}

fn command(
    stage: &Stage<'_>,
    story: &Conformance,
    at: &str,
    source: String,
    plain: String,
) -> Vec<String> {
    let [mount, _] = DIRS;
    // The next sequence has the next seed, so there must be next ones.
    let seed = stage.seed >> 32;
    let mut argv = vec![
        String::from(PROGRAM),
        String::from("differential"),
        format!("--mount={at}/{mount}"),
        format!("--plain={plain}"),
        format!("--source={source}"),
        format!("--seed={seed}"),
        format!("--cases={}", story.sequences),
    ];
    if story.damage {
        argv.push(format!("--plant={PLANT}"));
        // What was planted is known.
        argv.push(String::from("--shrink-seconds=0"));
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
