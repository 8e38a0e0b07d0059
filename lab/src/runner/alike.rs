//! Crash states that nobody who looked could tell apart.
//!
//! Mounting, recovery, the check, unmounting and fsck see of a disk what they read. A state that
//! holds the same wherever a look at another one read, and of which the same is asked, would be
//! looked at in the same way with the same answer, so it gets that answer. What the check itself
//! reads counts like the rest: states that differ in one block of data are told apart by whoever
//! reads that file. The disk notes reads as stretches that are too long rather than too short: what
//! a kernel read ahead, or read of what it had just written, is in them.
//!
//! The argument needs that a look depends on what it reads and on nothing else. Guests have
//! clocks and schedulers too, as they have for a state that is looked at twice; so what an oracle
//! objects to is looked at for itself before it is told.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use plugpull_disk::{Reads, View};

use super::explore::Seen;

/// So many looks are remembered. Of states in the order of their cuts the likeness is nearly
/// always to one of the last.
const REMEMBERED: usize = 512;

/// The looks of all guests of a case.
#[derive(Debug, Default)]
pub(super) struct Alike {
    /// The last one first.
    looks: Mutex<VecDeque<Arc<Look>>>,
}

/// One state that was looked at.
struct Look {
    view: View,
    /// What was asked of it.
    question: [u8; 32],
    reads: Reads,
    seen: Seen,
}

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let read = self.reads.bytes();
        f.debug_struct("Look").field("bytes_read", &read).finish()
    }
}

impl Alike {
    /// What a look at this would see, if one at another state has shown it.
    ///
    /// # Errors
    /// A file below the views cannot be read.
    pub(super) fn find(&self, view: &View, question: &[u8; 32]) -> Result<Option<Seen>> {
        // Compared without the lock: several guests ask at once.
        let looks: Vec<_> = self.looks().iter().map(Arc::clone).collect();
        for look in looks {
            if look.question == *question && look.view.agrees_with(view, &look.reads)? {
                return Ok(Some(look.seen.clone()));
            }
        }
        Ok(None)
    }

    /// Remember a look that went to its end.
    pub(super) fn note(&self, view: View, question: [u8; 32], reads: Reads, seen: Seen) {
        let mut looks = self.looks();
        looks.truncate(REMEMBERED - 1);
        looks.push_front(Arc::new(Look {
            view,
            question,
            reads,
            seen,
        }));
    }

    fn looks(&self) -> MutexGuard<'_, VecDeque<Arc<Look>>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use plugpull_disk::ByteCount;

    use super::*;

    fn disk(bytes: &[u8]) -> (tempfile::NamedTempFile, View) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), bytes).expect("written");
        let view = View::from_image(file.path()).expect("a disk");
        assert_eq!(view.size(), ByteCount(bytes.len() as u64));
        (file, view)
    }

    fn read(range: std::ops::Range<u64>) -> Reads {
        let mut reads = Reads::default();
        reads.add(range);
        reads
    }

    fn said(seen: Option<Seen>) -> Option<String> {
        match seen? {
            Seen::Unusable(text) => Some(text),
            Seen::Observed(_) => None,
        }
    }

    /// Three sectors: what recovery reads, a file's data, and what nobody reads.
    #[test]
    fn a_block_that_only_the_check_reads_tells_states_apart() {
        let alike = Alike::default();
        let sectors = |values: [u8; 3]| values.map(|value| [value; 512]).concat();
        let (_first, view) = disk(&sectors([1, 2, 3]));
        let seen = Seen::Unusable("the first".into());
        alike.note(view, [0; 32], read(0..1024), seen);
        let find = |values, question| {
            let (_file, view) = disk(&sectors(values));
            said(alike.find(&view, &[question; 32]).expect("compared"))
        };
        assert_eq!(find([1, 2, 9], 0).as_deref(), Some("the first"));
        assert_eq!(find([1, 9, 3], 0), None, "the file is another");
        assert_eq!(find([9, 2, 3], 0), None, "recovery reads another");
        assert_eq!(find([1, 2, 9], 1), None, "another thing is asked");
    }

    #[test]
    fn only_so_many_looks_are_kept() {
        let alike = Alike::default();
        let (_file, view) = disk(&[0; 512]);
        for _ in 0..REMEMBERED + 10 {
            let seen = Seen::Unusable(String::new());
            alike.note(view.clone(), [0; 32], read(0..512), seen);
        }
        assert_eq!(alike.looks().len(), REMEMBERED);
    }
}
