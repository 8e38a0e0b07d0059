//! A scenario file as it is written, before it means anything.
//!
//! Every field is optional and every value knows its place, so that all
//! complaints come from one side (`parse`), in one voice, with line and column.

use std::{collections::BTreeMap, ops::Range};

use serde::Deserialize;
use toml::Spanned;

pub(crate) type Text = Option<Spanned<String>>;
pub(crate) type Texts = Option<Spanned<Vec<Spanned<String>>>>;
pub(crate) type Number = Option<Spanned<u64>>;
pub(crate) type Flag = Option<Spanned<bool>>;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RawScenario {
    pub(crate) about: Text,
    pub(crate) profile: Texts,
    pub(crate) matrix: Option<Spanned<RawMatrix>>,
    #[serde(default)]
    pub(crate) lower: BTreeMap<Spanned<String>, RawLower>,
    #[serde(default)]
    pub(crate) mount: BTreeMap<Spanned<String>, RawMount>,
    pub(crate) disk: Option<RawDisk>,
    pub(crate) workload: Option<Spanned<RawWorkload>>,
    pub(crate) check: Option<Spanned<RawCheck>>,
    pub(crate) power_cut: Option<Spanned<RawPowerCut>>,
    pub(crate) expect: Option<Spanned<RawExpect>>,
    pub(crate) smoke: Option<Spanned<RawSizes>>,
    pub(crate) full: Option<Spanned<RawSizes>>,
    pub(crate) nightly: Option<Spanned<RawSizes>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMatrix {
    pub(crate) image: Texts,
    pub(crate) lower: Texts,
    pub(crate) mount: Texts,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLower {
    pub(crate) fs: Text,
    pub(crate) mkfs: Texts,
    pub(crate) options: Text,
    pub(crate) mounted: Flag,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawMount {
    pub(crate) mutant: Text,
    pub(crate) threads: Number,
    pub(crate) io: Text,
    pub(crate) options: Text,
    pub(crate) run: Texts,
    pub(crate) packages: Texts,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawDisk {
    pub(crate) size: Text,
    pub(crate) bus: Text,
    pub(crate) cache: Text,
    pub(crate) unit: Number,
    pub(crate) taken_for: Text,
}

/// `[workload]`, and `[PROFILE.workload]`, which may hold only sizes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawWorkload {
    pub(crate) builtin: Text,
    pub(crate) files: Texts,
    pub(crate) run: Texts,
    pub(crate) atomic: Flag,
    pub(crate) connections: Number,
    pub(crate) rows: Number,
    pub(crate) rows_per_commit: Number,
    pub(crate) writers: Number,
    pub(crate) rounds: Number,
    pub(crate) files_per_round: Number,
    pub(crate) entries: Number,
    pub(crate) commits: Number,
    pub(crate) transactions: Number,
    pub(crate) sequences: Number,
    pub(crate) operations: Number,
    pub(crate) wal_sync_method: Text,
    pub(crate) full_page_writes: Flag,
    pub(crate) journal: Text,
    pub(crate) synchronous: Text,
    pub(crate) durability: Text,
    pub(crate) fsync: Flag,
    pub(crate) fsync_on_open: Flag,
    pub(crate) damage: Flag,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCheck {
    pub(crate) run: Texts,
    pub(crate) files: Texts,
}

/// `[power-cut]`, and `[PROFILE.power-cut]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawPowerCut {
    pub(crate) cuts: Number,
    pub(crate) cut: Text,
    pub(crate) states: Number,
    pub(crate) fsck: Flag,
    pub(crate) nested: Number,
    pub(crate) prune: Flag,
    pub(crate) kinds: Texts,
    pub(crate) reruns: Number,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawExpect {
    pub(crate) verdict: Text,
    pub(crate) caught_by: Text,
    pub(crate) door: Text,
}

/// What one profile does at another size.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RawSizes {
    pub(crate) workload: Option<Spanned<RawWorkload>>,
    pub(crate) power_cut: Option<Spanned<RawPowerCut>>,
}

impl RawWorkload {
    /// The same workload with the sizes that `over` gives.
    pub(crate) fn resized(&self, over: &Self) -> Self {
        let take = |base: &Number, over: &Number| over.clone().or_else(|| base.clone());
        Self {
            builtin: self.builtin.clone(),
            files: self.files.clone(),
            run: self.run.clone(),
            atomic: self.atomic.clone(),
            connections: take(&self.connections, &over.connections),
            rows: take(&self.rows, &over.rows),
            rows_per_commit: take(&self.rows_per_commit, &over.rows_per_commit),
            writers: take(&self.writers, &over.writers),
            rounds: take(&self.rounds, &over.rounds),
            files_per_round: take(&self.files_per_round, &over.files_per_round),
            entries: take(&self.entries, &over.entries),
            commits: take(&self.commits, &over.commits),
            transactions: take(&self.transactions, &over.transactions),
            sequences: take(&self.sequences, &over.sequences),
            operations: take(&self.operations, &over.operations),
            wal_sync_method: self.wal_sync_method.clone(),
            full_page_writes: self.full_page_writes.clone(),
            journal: self.journal.clone(),
            synchronous: self.synchronous.clone(),
            durability: self.durability.clone(),
            fsync: self.fsync.clone(),
            fsync_on_open: self.fsync_on_open.clone(),
            damage: self.damage.clone(),
        }
    }

    /// The settings of built-in programs, with their names and places.
    pub(crate) fn settings(&self) -> [(&'static str, Option<Range<usize>>); 7] {
        let text = |written: &Text| written.as_ref().map(Spanned::span);
        let flag = |written: &Flag| written.as_ref().map(Spanned::span);
        [
            ("wal_sync_method", text(&self.wal_sync_method)),
            ("full_page_writes", flag(&self.full_page_writes)),
            ("journal", text(&self.journal)),
            ("synchronous", text(&self.synchronous)),
            ("durability", text(&self.durability)),
            ("fsync", flag(&self.fsync)),
            ("fsync_on_open", flag(&self.fsync_on_open)),
        ]
    }

    /// The keys that are sizes, with their names.
    pub(crate) fn sizes(&self) -> [(&'static str, &Number); 11] {
        [
            ("connections", &self.connections),
            ("rows", &self.rows),
            ("rows_per_commit", &self.rows_per_commit),
            ("writers", &self.writers),
            ("rounds", &self.rounds),
            ("files_per_round", &self.files_per_round),
            ("entries", &self.entries),
            ("commits", &self.commits),
            ("transactions", &self.transactions),
            ("sequences", &self.sequences),
            ("operations", &self.operations),
        ]
    }
}

impl RawPowerCut {
    /// The same cut with the numbers that `over` gives.
    pub(crate) fn resized(&self, over: &Self) -> Self {
        Self {
            cuts: over.cuts.clone().or_else(|| self.cuts.clone()),
            cut: self.cut.clone(),
            states: over.states.clone().or_else(|| self.states.clone()),
            fsck: self.fsck.clone(),
            nested: self.nested.clone(),
            prune: self.prune.clone(),
            kinds: self.kinds.clone(),
            reruns: over.reruns.clone().or_else(|| self.reruns.clone()),
        }
    }
}
