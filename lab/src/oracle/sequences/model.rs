//! What a sequence may have left: every binding of its names and every content
//! of its files, with what of it was promised.

use std::collections::{BTreeMap, BTreeSet};

use plugpull_protocol::workload::sequences::{
    CELL, Cell, GIVEN, GIVEN_CELLS, GIVEN_DIR, ROOT, Sequence, Step, parent,
};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    Nothing,
    Dir,
    File(usize),
}

/// One content of a file, from a step on.
#[derive(Debug)]
struct Version {
    cells: Vec<Cell>,
    /// Written cell by cell, so that every size on the way may be left.
    written: bool,
}

#[derive(Debug, Default)]
struct FileModel {
    versions: Vec<Version>,
    /// The version that a sync promised.
    synced: usize,
    /// Since when a durable name has stood for it.
    named_since: Option<usize>,
}

/// Everything that steps begun by a cut may have left.
#[derive(Debug, Default)]
pub(super) struct Model {
    files: Vec<FileModel>,
    /// Of each name its bindings, each with its step.
    bindings: BTreeMap<&'static str, Vec<(usize, Bound)>>,
    /// Of each directory the step of its last acknowledged sync.
    synced: BTreeMap<&'static str, usize>,
    steps: usize,
}

impl Model {
    /// After so many steps were begun.
    pub(super) fn of(sequence: &Sequence, begun: usize, acked: impl Fn(usize) -> bool) -> Self {
        let mut model = Self {
            steps: begun,
            ..Self::default()
        };
        model.bind(0, GIVEN_DIR, Bound::Dir);
        for name in GIVEN {
            model.create(0, name);
            let given = vec![Cell::Step(0); GIVEN_CELLS as usize];
            model.write(name, given);
            model.sync_file(name);
        }
        for dir in [ROOT, GIVEN_DIR] {
            model.sync_dir(0, dir);
        }
        for (at, step) in (1..=begun).zip(&sequence.steps) {
            model.take(at, *step, acked(at));
        }
        model
    }

    fn take(&mut self, at: usize, step: Step, acked: bool) {
        use Step as S;
        let cells = |count: u64| vec![Cell::Step(at); count as usize];
        match step {
            S::Create(name, count) => {
                self.create(at, name);
                self.write(name, cells(count));
            }
            S::Append(name, count) => {
                let content = [self.content(name), cells(count)].concat();
                self.write(name, content);
            }
            S::Overwrite(name, from, count) => {
                let mut content = self.content(name);
                let end = (from + count) as usize;
                content.resize(content.len().max(end), Cell::Zero);
                content[from as usize..end].fill(Cell::Step(at));
                self.write(name, content);
            }
            S::Replace(name, count) => {
                self.set(name, Vec::new());
                self.write(name, cells(count));
            }
            S::Truncate(name, size) => {
                let mut content = self.content(name);
                content.resize(size as usize, Cell::Zero);
                self.set(name, content);
            }
            S::Fallocate(name, count) => {
                let mut content = self.content(name);
                content.resize(content.len() + count as usize, Cell::Zero);
                self.set(name, content);
            }
            S::Punch(name, from, count) => {
                let mut content = self.content(name);
                let (from, end) = (from as usize, (from + count) as usize);
                let end = end.min(content.len());
                content[from.min(end)..end].fill(Cell::Zero);
                self.set(name, content);
            }
            S::Rename(from, to) => {
                let bound = self.bound(from);
                self.bind(at, from, Bound::Nothing);
                self.bind(at, to, bound);
            }
            S::Link(from, to) => {
                let bound = self.bound(from);
                self.bind(at, to, bound);
            }
            S::Unlink(name) => self.bind(at, name, Bound::Nothing),
            S::Mkdir(name) => self.bind(at, name, Bound::Dir),
            S::SyncFile(name) if acked => self.sync_file(name),
            S::SyncDir(name) if acked => self.sync_dir(at, name),
            S::SyncFile(_) | S::SyncDir(_) => {}
        }
    }

    fn create(&mut self, at: usize, name: &'static str) {
        self.files.push(FileModel {
            versions: vec![Version {
                cells: Vec::new(),
                written: false,
            }],
            ..FileModel::default()
        });
        self.bind(at, name, Bound::File(self.files.len() - 1));
    }

    fn bind(&mut self, at: usize, name: &'static str, bound: Bound) {
        self.bindings.entry(name).or_default().push((at, bound));
    }

    fn bound(&self, name: &str) -> Bound {
        self.bound_at(name, usize::MAX)
    }

    fn bound_at(&self, name: &str, step: usize) -> Bound {
        let all = self.bindings.get(name).into_iter().flatten();
        let until = all.take_while(|(at, _)| *at <= step);
        until.last().map_or(Bound::Nothing, |(_, bound)| *bound)
    }

    fn file(&mut self, name: &str) -> Option<&mut FileModel> {
        match self.bound(name) {
            Bound::File(file) => self.files.get_mut(file),
            _ => None,
        }
    }

    fn content(&mut self, name: &str) -> Vec<Cell> {
        let file = self.file(name);
        let latest = file.and_then(|file| file.versions.last());
        latest
            .map(|version| version.cells.clone())
            .unwrap_or_default()
    }

    fn write(&mut self, name: &str, cells: Vec<Cell>) {
        self.change(name, cells, true);
    }

    fn set(&mut self, name: &str, cells: Vec<Cell>) {
        self.change(name, cells, false);
    }

    fn change(&mut self, name: &str, cells: Vec<Cell>, written: bool) {
        if let Some(file) = self.file(name) {
            file.versions.push(Version { cells, written });
        }
    }

    fn sync_file(&mut self, name: &str) {
        if let Some(file) = self.file(name) {
            file.synced = file.versions.len() - 1;
        }
    }

    fn sync_dir(&mut self, at: usize, dir: &'static str) {
        self.synced.insert(dir, at);
        // A name below a new directory needs that one's own name as well,
        // which the bindings judge.
        if dir != ROOT && dir != GIVEN_DIR {
            return;
        }
        let named = self.bindings.keys().filter(|name| parent(name) == dir);
        let named: Vec<_> = named.map(|name| self.bound(name)).collect();
        for bound in named {
            if let Bound::File(file) = bound {
                self.files[file].named_since = Some(at);
            }
        }
    }

    /// All names that there ever were.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.bindings.keys().copied()
    }

    /// What a name may stand for: what it did when its directory was synced,
    /// and everything since.
    pub(super) fn bindings(&self, name: &str) -> Vec<Bound> {
        let Some((name, all)) = self.bindings.get_key_value(name) else {
            return Vec::new();
        };
        let synced = self.synced.get(parent(name)).copied().unwrap_or(0);
        let since = all.iter().filter(|(at, _)| *at > synced);
        let since = since.map(|(_, bound)| *bound);
        let mut bindings = vec![self.bound_at(name, synced)];
        bindings.extend(since);
        bindings
    }

    /// Every name that a file had since one was durable.
    pub(super) fn names_of(&self, file: usize) -> BTreeSet<&'static str> {
        let since = self.files[file].named_since.unwrap_or(0);
        let steps = since..=self.steps;
        steps.flat_map(|step| self.names_at(file, step)).collect()
    }

    fn names_at(&self, file: usize, step: usize) -> impl Iterator<Item = &'static str> {
        let is_it = move |name: &&'static str| self.bound_at(name, step) == Bound::File(file);
        self.bindings.keys().copied().filter(is_it)
    }

    /// The files that have had a name at every step since one was durable.
    pub(super) fn never_unlinked(&self) -> impl Iterator<Item = usize> {
        let files = (0..).zip(&self.files);
        files.filter_map(|(file, model)| {
            let mut steps = model.named_since?..=self.steps;
            let named = steps.all(|step| self.names_at(file, step).next().is_some());
            named.then_some(file)
        })
    }

    /// Whether a file may hold this.
    pub(super) fn accepts(&self, file: usize, size: u64, cells: &[Cell]) -> Result<(), String> {
        let model = &self.files[file];
        let versions = &model.versions[model.synced..];
        let sizes = |version: &Version| version.cells.len() as u64 * CELL;
        let between = versions.windows(2).any(|pair| {
            let (from, to) = (sizes(&pair[0]), sizes(&pair[1]));
            pair[1].written && (from.min(to)..=from.max(to)).contains(&size)
        });
        if !between && !versions.iter().any(|version| sizes(version) == size) {
            let sizes: BTreeSet<u64> = versions.iter().map(sizes).collect();
            return Err(format!("has {size} bytes and not one of {sizes:?}"));
        }
        let shortest = versions.iter().map(|version| version.cells.len()).min();
        for (at, cell) in cells.iter().enumerate() {
            let grown = shortest.is_some_and(|shortest| shortest <= at);
            let mut known = versions.iter().filter_map(|version| version.cells.get(at));
            let zero = grown && *cell == Cell::Zero;
            if !(zero || known.any(|known| known == cell)) {
                return Err(format!("holds {cell:?} in cell {at}"));
            }
        }
        Ok(())
    }

    /// A binding in words.
    pub(super) fn tell(&self, bound: Bound) -> String {
        match bound {
            Bound::Nothing => "nothing".to_owned(),
            Bound::Dir => "a directory".to_owned(),
            Bound::File(file) => {
                let model = &self.files[file];
                let versions = model.versions[model.synced..].iter();
                let told: Vec<_> = versions.map(|version| content(&version.cells)).collect();
                format!("a file of {}", told.join(" or "))
            }
        }
    }
}

/// A content in words: which steps wrote how many cells.
fn content(cells: &[Cell]) -> String {
    let runs = cells.chunk_by(|a, b| a == b);
    let told: Vec<_> = runs
        .map(|run| match &run[0] {
            Cell::Step(step) => format!("{} of step {step}", run.len()),
            _ => format!("{} zeros", run.len()),
        })
        .collect();
    match told.is_empty() {
        true => "no cells".to_owned(),
        false => format!("cells {}", told.join(" + ")),
    }
}
