//! What is measured of a filesystem: the catalogue of lines.
//!
//! A line is a value; [`super::work`] carries it out. Rates of metadata are per
//! operation on a name that the mount has never seen, while the lower filesystem has it
//! in its dentry cache: what is measured is the round trip and not the disk.

use std::time::Duration;

use serde::Serialize;

/// One thing that is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Unique, and what filters look at: `read-seq-4k-t1`.
    pub name: String,
    /// What a reader is told.
    pub title: String,
    /// Client threads.
    pub threads: usize,
    /// What they do.
    pub work: Work,
}

/// What the threads of a line do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Read or write files that exist, each thread its own.
    Data {
        /// Which way.
        way: Way,
        /// Where.
        place: Place,
        /// Bytes at a time.
        block_bytes: usize,
    },
    /// Write 4 KiB and fsync(2), again and again.
    Fsync,
    /// Something with many names, each thread in a directory of its own.
    Names(NameWork),
    /// `git clone --shared`: a checkout of every file.
    Checkout,
    /// PostgreSQL's pgbench, on a cluster that initdb made on the mount.
    Pgbench,
}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// To the client.
    Read,
    /// From the client.
    Write,
}

/// Where in a file the next operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// After the one before; the file is opened anew for each pass.
    Sequential,
    /// Anywhere, in a file that stays open and that was read through before.
    Random,
}

/// What is done with names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameWork {
    /// Create, write 1 KiB, close.
    Create,
    /// stat(2).
    Stat,
    /// Read a directory and stat each entry.
    List,
    /// rename(2) within a directory.
    Rename,
    /// unlink(2).
    Unlink,
}

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// How long data is read or written; operations on names are counted instead.
    pub data: Duration,
    /// Bytes of each thread's file.
    pub file_bytes: u64,
    /// Names, for all threads together.
    pub names: usize,
    /// Files in the checkout.
    pub checkout: usize,
    /// Seconds of pgbench.
    pub pgbench_s: u32,
}

impl Amount {
    /// For figures.
    pub const FULL: Self = Self {
        data: Duration::from_millis(500),
        file_bytes: 64 << 20,
        names: 8000,
        checkout: 1500,
        pgbench_s: 4,
    };
    /// To see that everything works.
    pub const QUICK: Self = Self {
        data: Duration::from_millis(100),
        file_bytes: 16 << 20,
        names: 800,
        checkout: 150,
        pgbench_s: 1,
    };
}

/// Bytes at a time, and how they are written in names and titles.
const BLOCKS: [(usize, &str, &str); 3] = [
    (4 << 10, "4k", "4 KiB"),
    (128 << 10, "128k", "128 KiB"),
    (1 << 20, "1m", "1 MiB"),
];

/// Client threads: alone, and more than this many processors need.
pub const THREADS: [usize; 2] = [1, 4];

/// Every line, in the order of the table.
pub fn all() -> Vec<Line> {
    let mut lines = Vec::new();
    for (way, way_name) in [(Way::Read, "read"), (Way::Write, "write")] {
        for (place, place_name, kind) in [
            (Place::Sequential, "seq", "sequential"),
            (Place::Random, "rand", "random"),
        ] {
            for (block_bytes, block_name, block) in BLOCKS {
                let work = Work::Data {
                    way,
                    place,
                    block_bytes,
                };
                let name = format!("{way_name}-{place_name}-{block_name}");
                let title = format!("{kind} {way_name}, {block} at a time");
                lines.extend(THREADS.map(|threads| line(&name, &title, threads, work)));
            }
        }
    }
    let many = [
        ("fsync", "write 4 KiB + fsync", Work::Fsync),
        (
            "create",
            "create + write 1 KiB + close",
            Work::Names(NameWork::Create),
        ),
        ("stat", "stat, cold names", Work::Names(NameWork::Stat)),
        ("list", "readdir + stat", Work::Names(NameWork::List)),
        ("rename", "rename", Work::Names(NameWork::Rename)),
        ("unlink", "unlink", Work::Names(NameWork::Unlink)),
    ];
    for (name, title, work) in many {
        lines.extend(THREADS.map(|threads| line(name, title, threads, work)));
    }
    lines.push(Line {
        name: "git-checkout".to_owned(),
        title: "git checkout (clone --shared)".to_owned(),
        threads: 1,
        work: Work::Checkout,
    });
    lines.push(Line {
        name: "pgbench".to_owned(),
        title: "pgbench, 4 clients (TPC-B, scale 2)".to_owned(),
        threads: 4,
        work: Work::Pgbench,
    });
    lines
}

fn line(name: &str, title: &str, threads: usize, work: Work) -> Line {
    let plural = if threads == 1 { "" } else { "s" };
    Line {
        name: format!("{name}-t{threads}"),
        title: format!("{title}, {threads} thread{plural}"),
        threads,
        work,
    }
}

/// What a rate counts, a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// 2²⁰ bytes.
    Mebibytes,
    /// Operations of the line.
    Operations,
    /// Files.
    Files,
    /// Transactions.
    Transactions,
}

impl Unit {
    /// As it stands behind a number.
    pub fn label(self) -> &'static str {
        match self {
            Self::Mebibytes => "MiB/s",
            Self::Operations => "/s",
            Self::Files => "files/s",
            Self::Transactions => "tps",
        }
    }
}

impl Line {
    /// What its rate counts: more is always better.
    pub fn unit(&self) -> Unit {
        match self.work {
            Work::Data { block_bytes, .. } if block_bytes > 4 << 10 => Unit::Mebibytes,
            Work::Data {
                place: Place::Sequential,
                ..
            } => Unit::Mebibytes,
            Work::Data { .. } | Work::Fsync | Work::Names(_) => Unit::Operations,
            Work::Checkout => Unit::Files,
            Work::Pgbench => Unit::Transactions,
        }
    }

    /// Whether it is about names and not about what files hold.
    pub fn is_metadata(&self) -> bool {
        matches!(self.work, Work::Names(_))
    }

    /// The name without the number of threads.
    pub fn family(&self) -> &str {
        match self.name.rsplit_once("-t") {
            Some((family, threads)) if threads.parse::<usize>().is_ok() => family,
            _ => &self.name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_families_have_every_number_of_threads() {
        let lines = all();
        let mut names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), lines.len());
        for line in lines.iter().filter(|line| line.name.ends_with("-t4")) {
            let alone = format!("{}-t1", line.family());
            assert!(names.contains(&alone.as_str()), "{alone}");
        }
        assert_eq!(lines.len(), 12 * 2 + 6 * 2 + 2);
    }
}
