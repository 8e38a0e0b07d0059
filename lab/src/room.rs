//! Room on the host's disks. A run that has none fails in the middle, in words that name
//! whatever wrote last; what is told here is told before.

use std::{collections::BTreeSet, io, path::Path};

use rustix::fs::{StatVfs, statvfs};

use crate::progress::{Event, Progress};

/// What a run of scenarios writes at most beside what is made already: logs of disks,
/// artefacts, and the scratch of its guests.
pub const OF_A_RUN: u64 = 4 << 30;

/// What everything takes where nothing is there yet: binaries 5.5 GiB, images and templates
/// 2.7 GiB, and what the tests of the filesystem write for a while, 3 GiB.
pub const OF_THE_WHOLE_SUITE: u64 = 12 << 30;

/// Bytes that are free to this user on the filesystem of `path`, or of the nearest directory
/// above it that exists.
///
/// # Errors
/// That of statvfs(2).
pub fn free(path: &Path) -> io::Result<u64> {
    filesystem(path).map(|seen| available(&seen))
}

fn available(seen: &StatVfs) -> u64 {
    seen.f_bavail.saturating_mul(seen.f_frsize)
}

fn filesystem(path: &Path) -> io::Result<StatVfs> {
    let there = path.ancestors().find(|path| path.exists());
    Ok(statvfs(there.unwrap_or(path))?)
}

/// Warn of each filesystem of these places that has less than `need` bytes.
pub fn warn(places: &[&Path], need: u64, progress: &dyn Progress) {
    let mut told = BTreeSet::new();
    for place in places {
        // What cannot be asked will say why when it is used.
        if let Ok(seen) = filesystem(place)
            && told.insert(seen.f_fsid)
            && let Some(text) = little(place, available(&seen), need)
        {
            progress.tell(&Event::Warning { text });
        }
    }
}

fn little(place: &Path, free: u64, need: u64) -> Option<String> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    (free < need).then(|| {
        format!(
            "only {:.1} GiB are free in {}, and this may take {:.0}: free some, or what fails \
             may fail for want of room",
            gib(free),
            place.display(),
            gib(need),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_named_and_enough_is_not() {
        let said = little(Path::new("/state"), 3 << 29, OF_A_RUN);
        let expected = "only 1.5 GiB are free in /state, and this may take 4: free some, or what \
                        fails may fail for want of room";
        assert_eq!(said.as_deref(), Some(expected));
        assert_eq!(little(Path::new("/state"), OF_A_RUN, OF_A_RUN), None);
    }

    #[test]
    fn a_place_that_is_not_there_yet_is_asked_above_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let below = free(&dir.path().join("no/such")).expect("statvfs");
        assert!(below > 0);
    }
}
