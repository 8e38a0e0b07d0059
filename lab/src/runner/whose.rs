//! Names the writes of a failure's story: in a guest whose disk holds all that had been submitted
//! by the cut, mounted once so that the kernel has replayed its journal, by the tools of the
//! guest's own distribution, which are of the same version as its mkfs.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use plugpull_disk::{CutPoint, Keep, PowerCut, RequestId, SECTOR_BYTES, Survivors, View};

use super::{
    Stage,
    explore::{Checker, Plan},
};
use crate::{
    naming::{self, Named, Owner},
    session::{LOWER, Session},
};

/// One tool's run, and all of them for one story.
const TOOL: Duration = Duration::from_secs(30);
const ALL: Duration = Duration::from_secs(120);

/// What each of some writes is, in pieces, and until when.
pub(super) type Whose = BTreeMap<RequestId, Vec<Place>>;

/// A piece of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) named: Named,
    /// Nobody had it at the cut, and this was its owner at the end of the run.
    pub(super) later: bool,
}

/// Look the writes up in the state of the cut, and those places that nobody has there at the end
/// of the run.
pub(super) fn whose<'a>(
    stage: &mut Stage<'a>,
    plan: &Plan<'_>,
    checker: &mut Checker<'a>,
    cut: &PowerCut<'_>,
    ids: &[RequestId],
) -> Result<Whose> {
    let place = |id: &RequestId| {
        let write = plan.recording.submit(*id)?;
        let start = write.at.0 * SECTOR_BYTES;
        Some((*id, start..start + write.length.0))
    };
    let (ids, places): (Vec<_>, Vec<_>) = ids.iter().filter_map(place).unzip();
    let then = cut.crash_state(&Keep::Everything)?.view;
    let named = owners(stage, checker, then, &places)?;
    let free: Vec<Range<u64>> = named
        .iter()
        .flatten()
        .filter(|piece| piece.owner == Owner::Nobody)
        .map(|piece| piece.bytes.clone())
        .collect();
    let end = CutPoint(plan.recording.last_seq());
    let mut found = Vec::new();
    if !free.is_empty() && end != cut.state().cut {
        let last = PowerCut::new(plan.base, plan.recording, end)?;
        let view = last.crash_state(&Keep::Everything)?.view;
        found = owners(stage, checker, view, &free)?;
    }
    let mut found = found.into_iter();
    let mut all = Whose::new();
    for (id, pieces) in ids.into_iter().zip(named) {
        let mut places: Vec<Place> = Vec::new();
        for named in pieces {
            let later = match named.owner {
                Owner::Nobody => found.next(),
                _ => None,
            };
            match later {
                Some(later) => places.extend(later.into_iter().map(|named| Place {
                    later: named.owner != Owner::Nobody,
                    named,
                })),
                None => places.push(Place {
                    named,
                    later: false,
                }),
            }
        }
        let alone = Keep::Exactly(Survivors::whole([id]));
        let written = cut.crash_state(&alone)?.view;
        for place in &mut places {
            if place.named.owner == Owner::Part(String::from("journal")) {
                let said = records(&written, &place.named.bytes)?;
                place.named.owner = Owner::Part(format!("journal{said}"));
            }
        }
        all.insert(id, places);
    }
    Ok(all)
}

/// What a write into ext4's journal says of itself: each of its own blocks begins with a number,
/// a kind and its transaction (include/linux/jbd2.h, `struct journal_header_s`); a copy of another
/// block never begins with that number.
fn records(written: &View, bytes: &Range<u64>) -> Result<String> {
    const NUMBER: [u8; 4] = 0xc03b_3998_u32.to_be_bytes();
    // The smallest block there is.
    const STEP: usize = 1024;
    let mut said = Vec::new();
    for at in bytes.clone().step_by(STEP) {
        let mut head = [0; 12];
        written.read_at(at, &mut head)?;
        let [number @ .., kind] = &head[..8] else {
            continue;
        };
        if !number.starts_with(&NUMBER) {
            continue;
        }
        let kind = match kind {
            1 => "descriptor",
            2 => "commit",
            3 | 4 => "superblock",
            5 => "revocations",
            _ => continue,
        };
        let transaction = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        said.push(match kind {
            "superblock" => String::from(kind),
            _ => format!("{kind} of transaction {transaction}"),
        });
    }
    Ok(match said.is_empty() {
        true => String::from(", copies of blocks"),
        false => format!(", {}", said.join(" and ")),
    })
}

fn owners<'a>(
    stage: &mut Stage<'a>,
    checker: &mut Checker<'a>,
    view: View,
    places: &[Range<u64>],
) -> Result<Vec<Vec<Named>>> {
    let lower = &stage.case.lower;
    checker.lend(stage, view, |session| {
        session.mount_lower(lower)?;
        let device = device(session)?;
        session.unmount_all()?;
        let start = Instant::now();
        let all = session.scale(ALL);
        let mut tool = |script: &str| {
            ensure!(
                start.elapsed() < all,
                "naming the writes took longer than {all:?}"
            );
            shell(session, script, &device)
        };
        naming::owners(lower.fs, places, &mut tool)
    })
}

/// The node of the disk below the lower mount.
fn device(session: &Session<'_>) -> Result<String> {
    let script = format!("awk '$2 == \"{LOWER}\" {{ print $1 }}' /proc/mounts");
    let said = shell(session, &script, "")?;
    let node = said.lines().last().unwrap_or_default().trim();
    ensure!(
        node.starts_with("/dev/"),
        "{LOWER} is mounted from {node:?}"
    );
    Ok(node.to_owned())
}

fn shell(session: &Session<'_>, script: &str, device: &str) -> Result<String> {
    let script = format!("PATH=/sbin:/usr/sbin:/bin:/usr/bin; {script}");
    let argv = ["/bin/sh", "-c", &script, "sh", device].map(String::from);
    let exited = session.exec(argv.into(), TOOL)?;
    ensure!(
        exited.success(),
        "{script} ended with {}: {}",
        exited.code,
        exited.stderr.trim()
    );
    Ok(exited.stdout)
}

/// The pieces of a write in words, as many as are worth reading.
pub(super) fn told(places: &[Place]) -> String {
    const TOLD: usize = 4;
    let mut words: Vec<String> = places
        .iter()
        .take(TOLD)
        .map(|place| match place.later {
            true => format!("{} (later in the run)", place.named),
            false => place.named.to_string(),
        })
        .collect();
    words.dedup();
    if let more @ 1.. = places.len().saturating_sub(TOLD) {
        words.push(format!("{more} more pieces"));
    }
    words.join("; ")
}
