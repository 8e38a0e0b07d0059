//! Counts the requests that a block device completes with an error.
//!
//! dm-flakey has no counters of its own, so the tracepoint
//! `block:block_bio_complete` is filtered for the device and a non-zero error,
//! and the events that the ring buffers took are counted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::devices;

/// A trace instance of its own, so that nothing else's events are counted.
const INSTANCE: &str = "/sys/kernel/tracing/instances/plugpull-errors";

/// A running count.
pub(crate) struct ErrorCount {
    instance: PathBuf,
}

impl ErrorCount {
    /// Start counting on a device.
    pub(crate) fn start(node: &Path) -> Result<Self> {
        let instance = PathBuf::from(INSTANCE);
        fs::create_dir(&instance).with_context(|| format!("make {INSTANCE}"))?;
        let count = Self { instance };
        let dev = devices::kernel_dev(node)?;
        count.set(
            "events/block/block_bio_complete/filter",
            &format!("dev == {dev} && error != 0"),
        )?;
        count.set("events/block/block_bio_complete/enable", "1")?;
        Ok(count)
    }

    /// Stop, and say how many there were.
    pub(crate) fn stop(self) -> Result<u64> {
        self.set("events/block/block_bio_complete/enable", "0")?;
        let mut count = 0;
        for cpu in fs::read_dir(self.instance.join("per_cpu"))? {
            let path = cpu?.path().join("stats");
            let stats =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            // What a full buffer overwrote has happened all the same.
            for name in ["entries", "overrun", "dropped events"] {
                count += stat(&stats, name);
            }
        }
        fs::remove_dir(&self.instance).with_context(|| format!("remove {INSTANCE}"))?;
        Ok(count)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.instance.join(file);
        fs::write(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))
    }
}

fn stat(stats: &str, name: &str) -> u64 {
    stats
        .lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .trim()
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn stats_are_read_by_their_whole_name() {
        let stats = "entries: 12\noverrun: 3\ncommit overrun: 9\nbytes: 512\ndropped events: 1\n";
        assert_eq!(super::stat(stats, "entries"), 12);
        assert_eq!(super::stat(stats, "overrun"), 3);
        assert_eq!(super::stat(stats, "dropped events"), 1);
        assert_eq!(super::stat(stats, "missing"), 0);
    }
}
