//! `pg_amcheck`.

use std::time::Duration;

use plugpull_protocol::Exited;

use super::server::{Server, program};
use super::sound::Table;
use crate::workload::Env;

/// `pg_amcheck` with everything it has, on the one database that has tables: on all of these that
/// are not known to be sound, or on everything where the tables could not be listed.
/// The extension must be there already.
pub(super) fn amcheck(
    env: &Env,
    server: &Server,
    tables: Option<&[Table]>,
    timeout: Duration,
) -> anyhow::Result<Exited> {
    let unknown = tables.and_then(|tables| env.sound.unknown(tables));
    if let (Some(tables), Some([])) = (tables, unknown.as_deref()) {
        return Ok(Exited {
            code: 0,
            stdout: format!("all {} tables are as they were found sound\n", tables.len()),
            stderr: String::new(),
            elapsed_ms: 0,
        });
    }
    let named = unknown.iter().flatten();
    let exited = program(env, "pg_amcheck")
        .args(server.client_args())
        .args(["--heapallindexed", "--parent-check", "--rootdescend"])
        .args(named.map(|table| format!("--table={}", table.pattern())))
        .args(["postgres"])
        .run(timeout)?;
    if let (Some(tables), true) = (tables, exited.success()) {
        env.sound.found(tables);
    }
    Ok(exited)
}
