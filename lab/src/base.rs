//! Base disks: the pristine contents that every story starts from.
//!
//! They are made by the guest's own mkfs, initdb and server, once for each
//! image, lower filesystem and size; the host's tools are of another version.
//! A base is a sparse raw file that never changes after it is published.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use plugpull_disk::{ByteCount as DiskBytes, View};
use plugpull_protocol::{Observation, WorkloadRequest, workload::TreeEntry};
use plugpull_vm::{
    cache::{self, KeyHasher},
    lock::FileLock,
};

use crate::{
    scenario::{Cache, Disk, ImageName, Lower},
    session::{LOWER, Opening, Session},
    testbed::Testbed,
};

/// Changes whenever the way bases are made does.
const FORMAT: u32 = 1;
/// The cluster of stories that need no ledger: the same base as the ledger's.
pub const PLAIN_CLUSTER: Kind = Kind::Cluster { connections: 4 };
/// A base with a cluster takes about 20 s to make on the reference host.
const LOCK_DEADLINE: Duration = Duration::from_secs(1200);
/// initdb takes 11 s in a guest of the reference host.
pub const INITDB_TIMEOUT: Duration = Duration::from_secs(240);
/// Starting, making tables, stopping.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(180);
/// Listing a thousand files.
const TREE_TIMEOUT: Duration = Duration::from_secs(120);

/// Arguments of every initdb: checksums, and WAL segments so small that a
/// short run recycles some.
pub fn initdb_args() -> Vec<String> {
    [
        "--data-checksums",
        "--wal-segsize=1",
        "--locale=C",
        "--encoding=UTF8",
        "--auth=trust",
    ]
    .map(str::to_owned)
    .into()
}

/// What is on a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The lower filesystem alone.
    Empty,
    /// The lower filesystem with a PostgreSQL cluster that has the ledger's
    /// tables, made natively and stopped cleanly.
    Cluster {
        /// How many connections the ledger's tables serve.
        connections: u32,
    },
}

/// A base disk that exists.
#[derive(Debug, Clone)]
pub struct Base {
    dir: PathBuf,
}

/// What a base is for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The image whose tools make it.
    pub image: &'a ImageName,
    /// The filesystem.
    pub lower: &'a Lower,
    /// The disk's shape.
    pub disk: Disk,
    /// What is on it.
    pub kind: Kind,
}

impl Kind {
    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Cluster { .. } => "PostgreSQL cluster",
        }
    }
}

impl Wanted<'_> {
    fn key(&self, bed: &Testbed) -> Result<String> {
        let image = bed.image(self.image)?;
        let mut key = KeyHasher::new("base")
            .field("format", FORMAT.to_string())
            .field("packages", &image.packages_hash)
            .field("kernel", &image.kernel)
            .field(
                "lower",
                format!(
                    "{} {:?} {}",
                    self.lower.fs, self.lower.mkfs, self.lower.options
                ),
            )
            .field("disk", format!("{} {}", self.disk.size.0, self.disk.unit))
            .field("kind", format!("{:?}", self.kind));
        if let Kind::Cluster { .. } = self.kind {
            // The tables are made by the guest's workload.
            key = key
                .field("initdb", initdb_args().join(" "))
                .field("guest", bed.setup().artifacts.guest.hash.as_str());
        }
        Ok(format!(
            "{}-{}-{}",
            self.image,
            self.lower.name,
            key.finish().short()
        ))
    }
}

impl Base {
    /// Whether it has been made.
    ///
    /// # Errors
    /// When the run did not prepare the image.
    pub fn exists(bed: &Testbed, wanted: Wanted<'_>) -> Result<bool> {
        Ok(bed
            .home()
            .cache
            .join("bases")
            .join(wanted.key(bed)?)
            .exists())
    }

    /// The base, made now if it is missing.
    ///
    /// # Errors
    /// When the guest cannot make it.
    pub fn ensure(bed: &Testbed, wanted: Wanted<'_>) -> Result<Self> {
        let bases = bed.home().cache.join("bases");
        let name = wanted.key(bed)?;
        let dir = bases.join(&name);
        if dir.exists() {
            return Ok(Self { dir });
        }
        std::fs::create_dir_all(&bases).with_context(|| format!("make {}", bases.display()))?;
        let _lock = FileLock::exclusive(&bases.join(format!("{name}.lock")), LOCK_DEADLINE)?;
        if !dir.exists() {
            cache::publish_dir(&dir, |beside| {
                make(bed, wanted, beside, &bases.join("logs").join(&name))
            })
            .with_context(|| format!("make the base disk {name}"))?;
        }
        Ok(Self { dir })
    }

    /// Its content.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn view(&self) -> Result<View> {
        View::from_image(&self.dir.join("disk.img"))
    }

    /// Its name in the cache.
    pub fn name(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// What initdb made natively on this lower filesystem, before the cluster
    /// was started for the first time.
    ///
    /// # Errors
    /// When this is no base of [`Kind::Cluster`].
    pub fn reference_tree(&self) -> Result<Vec<TreeEntry>> {
        let path = self.dir.join("initdb.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is malformed", path.display()))
    }
}

fn make(bed: &Testbed, wanted: Wanted<'_>, dir: &Path, logs: &Path) -> Result<()> {
    let spec = Disk {
        cache: Cache::Volatile,
        ..wanted.disk
    };
    let mut session = Session::start(
        bed,
        Opening {
            image: wanted.image,
            spec,
            view: View::zeros(DiskBytes(spec.size.0))?,
            log: dir.join("making.log"),
            record: false,
            seed: 0,
            logs,
            slot: None,
        },
    )?;
    session.mkfs(wanted.lower)?;
    if let Kind::Cluster { connections } = wanted.kind {
        session.mount_by_kernel(wanted.lower)?;
        let data = cluster_dir(LOWER);
        initdb(&session, &data)?;
        let entries = tree(&session, &data, false)?;
        std::fs::write(dir.join("initdb.json"), serde_json::to_vec(&entries)?)?;
        let timeout_ms = session.timeout_ms(PREPARE_TIMEOUT);
        let prepare = WorkloadRequest::PostgresLedgerPrepare {
            dir: data,
            connections,
            timeout_ms,
        };
        match session.workload(prepare, PREPARE_TIMEOUT * 2)? {
            Observation::Prepared => {}
            other => bail!("the tables were not prepared: {other:?}"),
        }
    }
    let disk = session.power_off()?;
    disk.view().export_sparse(&dir.join("disk.img"))?;
    std::fs::remove_file(dir.join("making.log")).context("remove the log of the base's making")
}

/// Where a cluster lives below a mount.
pub fn cluster_dir(mount: &str) -> String {
    format!("{mount}/pgdata")
}

/// Run initdb and insist on its success.
///
/// # Errors
/// When it fails; its words are in the message.
pub fn initdb(session: &Session<'_>, dir: &str) -> Result<()> {
    let timeout_ms = session.timeout_ms(INITDB_TIMEOUT);
    let request = WorkloadRequest::PostgresInitdb {
        dir: dir.to_owned(),
        args: initdb_args(),
        timeout_ms,
    };
    match session.workload(request, INITDB_TIMEOUT * 2)? {
        Observation::Tool(exited) => {
            ensure!(
                exited.success(),
                "initdb ended with {}: {}",
                exited.code,
                exited.stderr.trim()
            );
            Ok(())
        }
        other => bail!("the guest answered initdb with {other:?}"),
    }
}

/// List a whole tree.
///
/// # Errors
/// When the guest cannot.
pub fn tree(session: &Session<'_>, dir: &str, contents: bool) -> Result<Vec<TreeEntry>> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let request = WorkloadRequest::Tree {
            dir: dir.to_owned(),
            after,
            contents,
        };
        match session.workload(request, TREE_TIMEOUT)? {
            Observation::Tree { entries, next } => {
                all.extend(entries);
                if next.is_none() {
                    return Ok(all);
                }
                after = next;
            }
            other => bail!("the guest answered a listing with {other:?}"),
        }
    }
}
