//! What is noted of the calls that ask for durability, among the promises: see
//! [`Note`].

use serde::{Deserialize, Serialize};

use crate::Promise;

/// How a mark that holds a [`Note`] begins.
const MARK: &str = "syncs ";

/// Said between promises, as a mark: it has its place among the disk's requests like one, and is
/// no promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Note {
    /// From here on every call is seen.
    Watching {
        /// Whether the guest's block layer takes the disk for one without a volatile cache
        /// (`queue/write_cache`), and sends it no flush.
        write_through: bool,
    },
    /// These calls were made since the note or promise before.
    Synced(Vec<Synced>),
    /// From here on nothing is seen any more.
    Blind {
        /// Why.
        why: String,
    },
}

/// A call that asks for durability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// Where it was seen.
    pub level: Level,
    /// The file; 0 for the whole filesystem.
    pub inode: u64,
    /// Whether that is a directory.
    pub directory: bool,
}

/// Which filesystem was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The one that programs see; where nothing is mounted over the lower one, that.
    Mount,
    /// The one on the disk, below a mount.
    Lower,
}

impl Note {
    /// The mark that says it.
    pub fn mark(&self) -> Promise {
        let text = serde_json::to_string(self).unwrap_or_default();
        Promise::Mark {
            text: format!("{MARK}{text}"),
        }
    }

    /// What a mark says, if it is a note.
    pub fn of(promise: &Promise) -> Option<Self> {
        match promise {
            Promise::Mark { text } => serde_json::from_str(text.strip_prefix(MARK)?).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_a_mark_and_comes_back() {
        let synced = |level, inode| Synced {
            level,
            inode,
            directory: false,
        };
        for note in [
            Note::Watching {
                write_through: true,
            },
            Note::Synced(vec![synced(Level::Mount, 0), synced(Level::Lower, 12)]),
            Note::Blind {
                why: "\"x\"".into(),
            },
        ] {
            assert_eq!(Note::of(&note.mark()), Some(note));
        }
        let mark = |text: &str| Promise::Mark { text: text.into() };
        assert_eq!(Note::of(&mark("load-begin")), None);
        assert_eq!(Note::of(&mark("syncs are dear")), None);
    }
}
