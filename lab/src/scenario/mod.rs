//! A scenario is a value: one TOML file, read into types that hold no wrong
//! combination, and expanded into cases.
//!
//! Nothing here boots, mounts or prints. `names` are what files may say,
//! `raw` is a file as written, `parse` makes sense of it or says what is wrong
//! and where, `story` is what happens, `proof` what must have happened for a
//! verdict to count, `matrix` the cases of a profile.

mod matrix;
mod names;
mod parse;
mod proof;
mod raw;
mod store;
mod story;
mod units;

use std::{
    io,
    path::{Path, PathBuf},
};

pub use matrix::Case;
pub use names::{
    Bus, Cache, CaseName, Door, Expect, Fs, ImageName, IoMode, Mutant, Named, OracleName, Profile,
    RedbDurability, ScenarioName, SqliteJournal, SqliteSynchronous, TakenFor, WalSync,
};
pub use parse::diagnostic::{BadFile, Problem, nearest};
pub use proof::{Count, Counts, Threshold};
pub use store::{Store, StoreKind};
pub use story::{
    Argv, Conformance, Connections, CutPoint, Cuts, Cuttable, DistributionProgram, HostFile, Judge,
    LedgerLoad, Load, PowerCut, Program, STATES_PER_CUT, Story, Writers,
};
pub use units::ByteCount;

/// A scenario file, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The file's name without `.toml`.
    pub name: ScenarioName,
    /// The file.
    pub path: PathBuf,
    /// What it shows, in one line.
    pub about: String,
    /// Names to combine.
    pub matrix: Matrix,
    /// The disk under the lower filesystem.
    pub disk: Disk,
    /// What the guest is told that its cache is; the disk's own word where it says nothing.
    pub taken_for: Option<TakenFor>,
    /// What a run must come to.
    pub expect: Expect,
    /// The door that what it finds must be laid at.
    pub door: Option<Door>,
    /// The profiles it runs in, each with the story at that profile's size.
    stories: Vec<(Profile, Story)>,
}

/// The names of a matrix, with what they stand for. No array is empty and
/// every lower filesystem fits every mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Guest images.
    pub images: Vec<ImageName>,
    /// Filesystems on the disk.
    pub lowers: Vec<Lower>,
    /// What is mounted over them.
    pub mounts: Vec<Mount>,
}

/// A filesystem on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lower {
    /// Its name in the matrix.
    pub name: String,
    /// Its kind.
    pub fs: Fs,
    /// Further arguments to mkfs.
    pub mkfs: Vec<String>,
    /// Mount options, comma separated; may be empty.
    pub options: String,
    /// False: it is made and left to a server that takes the block device.
    pub mounted: bool,
}

/// What the workload sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its name in the matrix.
    pub name: String,
    /// Who serves it.
    pub server: Server,
}

/// Who serves a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Nobody: the workload is on the lower filesystem.
    Native,
    /// plugpull-fs over the lower filesystem.
    PlugpullFs {
        /// A wrong variant, from the binary built with the feature `mutants`.
        mutant: Option<Mutant>,
        /// Dispatch threads; its default when absent.
        threads: Option<std::num::NonZeroU32>,
        /// How reads and writes travel; its default when absent.
        io: Option<IoMode>,
        /// `-o` options, comma separated; may be empty.
        options: String,
    },
    /// Another server, in the foreground.
    Program {
        /// Its command; `{mount}` and one of `{lower}` and `{device}` stand for
        /// paths.
        run: Argv,
        /// Debian packages it needs in the guest.
        packages: Vec<String>,
    },
}

/// The disk under the lower filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size, a multiple of 1 MiB.
    pub size: ByteCount,
    /// Its bus.
    pub bus: Bus,
    /// How honest it is.
    pub cache: Cache,
    /// What it writes whole or not at all, in bytes: 512 or 4096.
    pub unit: u32,
}

impl Scenario {
    /// Make sense of a file's text. `images` are the images that exist.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place.
    pub fn parse(path: &Path, text: &str, images: &[ImageName]) -> Result<Self, BadFile> {
        parse::scenario(path, text, images)
    }

    /// The directory that its relative paths start at.
    pub fn dir(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// The profiles it runs in.
    pub fn profiles(&self) -> impl Iterator<Item = Profile> {
        self.stories.iter().map(|(profile, _)| *profile)
    }

    /// What happens in a profile; `None` where it does not run.
    pub fn story(&self, profile: Profile) -> Option<&Story> {
        let found = self.stories.iter().find(|(p, _)| *p == profile);
        found.map(|(_, story)| story)
    }

    /// What a run in this profile must have done before its verdict counts.
    pub fn thresholds(&self, profile: Profile) -> Vec<Threshold> {
        let lossy = self.disk.cache != Cache::None;
        let of = |story: &Story| story.thresholds(&self.expect, lossy);
        let mut thresholds = self.story(profile).map(of).unwrap_or_default();
        for (_, story) in &self.stories {
            for other in of(story) {
                for mine in thresholds.iter_mut().filter(|t| t.count == other.count) {
                    mine.floor = mine.floor.min(other.at_least);
                }
            }
        }
        thresholds
    }

    /// Whether this is a control: a run that must be caught.
    pub fn is_control(&self) -> bool {
        matches!(self.expect, Expect::Caught(_))
    }
}

/// A file of a scenario directory and what came of it.
#[derive(Debug)]
pub struct Loaded {
    /// The file's name without `.toml`; the test's name where the file is bad.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// The scenario, or what is wrong with the file.
    pub scenario: Result<Scenario, BadFile>,
}

/// Read one scenario file. A file that is no scenario is a value too: it
/// becomes a failing test, never a failing listing.
///
/// # Errors
/// Only when the file cannot be read.
pub fn load_file(path: &Path, images: &[ImageName]) -> io::Result<Loaded> {
    let bytes = std::fs::read(path)?;
    let scenario = match String::from_utf8(bytes) {
        Ok(text) => Scenario::parse(path, &text, images),
        Err(error) => Err(parse::not_utf8(path, &error)),
    };
    let stem = path.file_stem().unwrap_or_default();
    Ok(Loaded {
        name: stem.to_string_lossy().into_owned(),
        path: path.to_owned(),
        scenario,
    })
}

/// Read every `*.toml` of a directory, in the order of their names.
///
/// # Errors
/// Only when the directory or a file cannot be read.
pub fn load_dir(dir: &Path, images: &[ImageName]) -> io::Result<Vec<Loaded>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| load_file(path, images)).collect()
}

/// The images that exist: `NAME.toml` files of a directory.
///
/// # Errors
/// When the directory cannot be read.
pub fn image_names(dir: &Path) -> io::Result<Vec<ImageName>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "toml")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(ImageName::new(stem));
        }
    }
    names.sort();
    Ok(names)
}
