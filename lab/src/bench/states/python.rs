//! A guest for one program of ours, which is a single python process so that
//! no program's start is measured, and answers with one line of JSON.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use plugpull_disk::View;
use plugpull_protocol::{Reply, Request};
use serde::de::DeserializeOwned;

use super::Stage;
use crate::{
    scenario::{Disk, ImageName},
    session::{Opening, Session},
};

/// What the programs share.
const COMMON: &str = include_str!("common.py");
/// What the guest does with a program behind its own deadline.
const GRACE: Duration = Duration::from_secs(20);

/// A guest whose disk holds this.
pub(super) fn session<'a>(
    stage: Stage<'a>,
    image: &ImageName,
    spec: Disk,
    view: View,
    dir: &tempfile::TempDir,
) -> Result<Session<'a>> {
    let opening = Opening {
        image,
        spec,
        view,
        log: dir.path().join("data.disklog"),
        record: false,
        seed: 0,
        logs: dir.path(),
        slot: None,
    };
    Session::start(stage.bed, opening)
}

/// Run a program. One that takes too long ends itself and says where it was;
/// where it cannot, the guest ends it, and where that cannot, the host.
pub(super) fn run<T: DeserializeOwned>(
    session: &Session<'_>,
    program: &str,
    args: &[&str],
    deadline: Duration,
) -> Result<T> {
    let seconds = session.scale(deadline).as_secs().to_string();
    let text = format!("{COMMON}\n{program}");
    let mut argv = ["/usr/bin/python3", "-c", &text, &seconds]
        .map(str::to_owned)
        .to_vec();
    argv.extend(args.iter().map(|arg| (*arg).to_owned()));
    let request = Request::Exec {
        argv,
        env: vec![(
            String::from("PATH"),
            String::from("/usr/sbin:/usr/bin:/sbin:/bin"),
        )],
        uid: None,
        timeout_ms: session.timeout_ms(deadline + GRACE),
    };
    let patience = session.scale(deadline + 2 * GRACE);
    let exited = match session.guest().request(request, patience)? {
        Reply::Exited(exited) => exited,
        other => bail!("the guest answered a program with {other:?}"),
    };
    ensure!(
        exited.success(),
        "the program ended with {}: {}",
        exited.code,
        exited.stderr.trim()
    );
    let last = exited.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the program said {last:?}"))
}
