//! The store behind a pair of pipes, so that it can be killed without its
//! client.

use std::{
    io::{BufRead, Write},
    path::Path,
};

use anyhow::{Result, bail};

use super::{
    Faults,
    store::{LogFile, OnOpen},
};

/// Answer lines until there are no more: `append KEY VALUE`, `sync`, `get KEY`.
pub(super) fn serve(log: &Path, faults: Faults) -> Result<()> {
    let on_open = match faults.no_fsync_on_open {
        true => OnOpen::Trust,
        false => OnOpen::Sync,
    };
    let mut store = LogFile::open(log, on_open)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["append", key, value] => {
                store.append(key, value)?;
                writeln!(out, "ok")?;
            }
            ["sync"] => {
                if !faults.no_fsync {
                    store.sync()?;
                }
                writeln!(out, "ok")?;
            }
            ["get", key] => match store.get(key) {
                Some(value) => writeln!(out, "value {value}")?,
                None => writeln!(out, "none")?,
            },
            _ => bail!("the client said `{line}`"),
        }
        out.flush()?;
    }
    Ok(())
}
