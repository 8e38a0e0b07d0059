//! PostgreSQL's own checkers.

use std::path::Path;
use std::time::Duration;

use plugpull_protocol::Exited;
use plugpull_protocol::workload::{BadBlock, Checksums};

use super::server::{Server, program};
use super::sound::Table;
use crate::workload::Env;

/// How many bad blocks and complaints are reported.
const KEPT: usize = 1000;

/// `pg_checksums --check` on a stopped cluster.
pub(super) fn checksums(env: &Env, dir: &Path, timeout: Duration) -> anyhow::Result<Checksums> {
    let exited = program(env, "pg_checksums")
        .args(["--check", "--pgdata"])
        .args([dir])
        .run(timeout)?;
    let mut bad = Vec::new();
    let mut complaints = Vec::new();
    for line in exited.stderr.lines() {
        match bad_block(line) {
            Some(block) if bad.len() < KEPT => bad.push(block),
            None if complaints.len() < KEPT => complaints.push(line.to_owned()),
            _ => {}
        }
    }
    Ok(Checksums {
        exited,
        bad,
        complaints,
    })
}

/// Understand `…checksum verification failed in file "F", block N: …`.
fn bad_block(line: &str) -> Option<BadBlock> {
    let (_, rest) = line.split_once("checksum verification failed in file \"")?;
    let (file, rest) = rest.split_once("\", block ")?;
    let (block, _) = rest.split_once(':')?;
    Some(BadBlock {
        file: file.to_owned(),
        block: block.parse().ok()?,
    })
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_block_is_understood() {
        let line = "pg_checksums: error: checksum verification failed in file \"/d/base/5/16388\", block 12: calculated checksum 4A5C but block contains 0";
        let block = bad_block(line).expect("understood");
        assert_eq!((block.file.as_str(), block.block), ("/d/base/5/16388", 12));
        assert_eq!(bad_block("pg_checksums: error: could not read"), None);
    }
}
