//! Makes a cluster, and starts it a first time.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use plugpull_protocol::Exited;
use plugpull_protocol::workload::ServerRun;
use rustix::fs::{Gid, Mode, Uid};

use super::server::{Server, Started, USER, program};
use crate::workload::Env;

/// Run initdb into a directory of the database's user.
pub(super) fn initdb(
    env: &Env,
    dir: &Path,
    args: &[String],
    timeout: Duration,
) -> anyhow::Result<Exited> {
    own(env, dir)?;
    program(env, "initdb")
        .args([Path::new("--pgdata"), dir])
        .args(["--username", USER, "--auth", "trust"])
        .args(["--locale", "C", "--encoding", "UTF8"])
        .args(["--data-checksums", "--no-instructions"])
        .args(args)
        .run(timeout)
}

/// Make a directory that initdb accepts: its user's, and private.
fn own(env: &Env, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let (uid, gid) = (
        Uid::from_raw(env.postgres_uid),
        Gid::from_raw(env.postgres_gid),
    );
    let owned = rustix::fs::chown(dir, Some(uid), Some(gid));
    let owned = owned.and_then(|()| rustix::fs::chmod(dir, Mode::RWXU));
    owned.with_context(|| format!("give {} to the database's user", dir.display()))
}

/// Start the server, ask it one thing, stop it.
pub(super) fn first_start(env: &Env, dir: &Path, timeout: Duration) -> anyhow::Result<ServerRun> {
    let server = match Server::start(env, dir, &[], timeout)? {
        Started::Ready(server) => server,
        Started::Ended(run) => return Ok(run),
    };
    let answer = server.connect(timeout).and_then(|mut client| {
        let row = client.query_one("SELECT 1", &[])?;
        Ok(row.try_get::<_, i32>(0)?)
    });
    let run = server.stop(timeout)?;
    Ok(ServerRun {
        answered: matches!(answer, Ok(1)),
        ..run
    })
}
