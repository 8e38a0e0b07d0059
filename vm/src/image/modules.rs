//! Kernel modules: which are kept, what each depends on, in which order they
//! are loaded.
//!
//! Modules are stored uncompressed, so that a guest's init can hand any of them
//! to finit_module(2) as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host;
use crate::process::Cmd;

const DEADLINE: Duration = Duration::from_secs(300);
/// Below `kernel/`: what a guest that mounts filesystems on virtual disks can
/// have a use for. The rest is drivers of hardware that is not there.
const KEPT_DIRS: [&str; 20] = [
    "arch/x86",
    "block",
    "crypto",
    "drivers/block",
    "drivers/char/hw_random",
    "drivers/char/virtio_console",
    "drivers/dax",
    "drivers/firmware/qemu_fw_cfg",
    "drivers/md",
    "drivers/misc/pvpanic",
    "drivers/nvdimm",
    "drivers/nvme/common",
    "drivers/nvme/host",
    "drivers/scsi/scsi_",
    "drivers/scsi/sd_mod",
    "drivers/scsi/sg",
    "drivers/scsi/virtio_scsi",
    "drivers/virtio",
    "fs",
    "lib",
];
/// Below `kernel/`: filesystems of networks and clusters, and KVM's guests.
const DROPPED_DIRS: [&str; 17] = [
    "arch/x86/events",
    "arch/x86/kvm",
    "drivers/block/drbd",
    "drivers/block/rbd",
    "drivers/block/rnbd",
    "drivers/block/aoe",
    "fs/9p",
    "fs/afs",
    "fs/ceph",
    "fs/cifs",
    "fs/dlm",
    "fs/gfs2",
    "fs/lockd",
    "fs/nfs",
    "fs/ocfs2",
    "fs/orangefs",
    "fs/smb",
];

/// What modules.dep and modules.builtin say of one kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModuleIndex {
    /// By name: the module's path below `/lib/modules/RELEASE`, and the paths of
    /// all it depends on, as modules.dep orders them: the last is loaded first.
    modules: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

impl ModuleIndex {
    /// Reads both files out of `/lib/modules/RELEASE` or a copy of it.
    ///
    /// # Errors
    /// When one is missing or malformed.
    pub fn load(dir: &Path) -> Result<ModuleIndex> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        ModuleIndex::parse(&read("modules.dep")?, &read("modules.builtin")?)
    }

    /// Turns the text of both files into an index.
    ///
    /// # Errors
    /// When a line of modules.dep has no colon.
    pub fn parse(dep: &str, builtin: &str) -> Result<ModuleIndex> {
        let mut index = ModuleIndex::default();
        for line in dep.lines().filter(|line| !line.trim().is_empty()) {
            let (path, deps) = line
                .split_once(':')
                .with_context(|| format!("modules.dep: {line:?}"))?;
            let deps = deps.split_whitespace().map(str::to_owned).collect();
            index
                .modules
                .insert(module_name(path), (path.to_owned(), deps));
        }
        index.builtin = builtin.lines().map(module_name).collect();
        Ok(index)
    }

    /// The paths of the named modules and all they depend on, in an order in
    /// which they can be loaded. Built-in ones and those in `loaded` (which is
    /// added to) are left out.
    ///
    /// # Errors
    /// When the kernel has no such module; the message names it.
    pub fn load_order(
        &self,
        names: &[String],
        loaded: &mut BTreeSet<String>,
    ) -> Result<Vec<String>> {
        let mut order = Vec::new();
        for name in names {
            let name = module_name(name);
            if self.builtin.contains(&name) {
                continue;
            }
            let Some((path, deps)) = self.modules.get(&name) else {
                bail!("the kernel has no module {name}, neither as a file nor built in");
            };
            for path in deps.iter().rev().chain([path]) {
                if loaded.insert(path.clone()) {
                    order.push(path.clone());
                }
            }
        }
        Ok(order)
    }
}

/// `kernel/fs/dm-mod.ko.xz` → `dm_mod`: a hyphen and an underscore are the same
/// in a module's name.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Removes modules nobody will load, uncompresses the others, and writes
/// modules.dep and its kin with the tree's own depmod(8), which knows what its
/// kernel's modules look like. Returns the index.
///
/// # Errors
/// When the tree has no modules or a program fails.
pub fn prepare(tree: &Path, release: &str) -> Result<ModuleIndex> {
    let dir = tree.join("usr/lib/modules").join(release);
    let mut compressed = Vec::new();
    prune(&dir.join("kernel"), "", &mut compressed)
        .with_context(|| format!("in {}", dir.display()))?;
    if !compressed.is_empty() {
        // Names come over standard input: there may be more than fit into a
        // command line.
        let mut names = Vec::new();
        for path in compressed {
            names.extend_from_slice(path.as_os_str().as_encoded_bytes());
            names.push(b'\n');
        }
        host::command("xz")
            .args(["--decompress", "--threads=1", "--files"])
            .stdin(names)
            .run(DEADLINE)?;
    }
    let below = |path: &str| tree.join(path).into_os_string();
    Cmd::new(below("usr/lib64/ld-linux-x86-64.so.2"))
        .args(["--argv0", "depmod", "--library-path"])
        .arg(below("usr/lib/x86_64-linux-gnu"))
        .arg(below("usr/bin/kmod"))
        .args(["-b".as_ref(), tree.as_os_str(), release.as_ref()])
        .run(DEADLINE)?;
    ModuleIndex::load(&dir)
}

/// Walks `dir`, which is `prefix` below `kernel/`; collects compressed modules.
fn prune(dir: &Path, prefix: &str, compressed: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let below = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            match Fate::of(&below) {
                Fate::Dropped => fs::remove_dir_all(&path)?,
                Fate::Kept | Fate::Undecided => prune(&path, &format!("{below}/"), compressed)?,
            }
        } else if Fate::of(&below) != Fate::Kept {
            fs::remove_file(&path)?;
        } else if below.ends_with(".xz") {
            compressed.push(path);
        } else if !below.ends_with(".ko") {
            bail!("{below}: expected a module, uncompressed or compressed with xz");
        }
    }
    Ok(())
}

/// What becomes of a path below `kernel/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    /// A directory that may have kept ones in it.
    Undecided,
}

impl Fate {
    fn of(below: &str) -> Fate {
        let under = |dir: &str| {
            below == dir
                || below
                    .strip_prefix(dir)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        if DROPPED_DIRS.iter().any(|dir| under(dir)) {
            return Fate::Dropped;
        }
        if KEPT_DIRS.iter().any(|kept| below.starts_with(kept)) {
            return Fate::Kept;
        }
        let above_kept = KEPT_DIRS
            .iter()
            .any(|kept| kept.starts_with(&format!("{below}/")));
        if above_kept {
            Fate::Undecided
        } else {
            Fate::Dropped
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko kernel/lib/crc16.ko\n\
        kernel/fs/jbd2/jbd2.ko:\n\
        kernel/fs/mbcache.ko:\n\
        kernel/lib/crc16.ko:\n\
        kernel/drivers/md/dm-flakey.ko: kernel/drivers/md/dm-mod.ko kernel/drivers/dax/dax.ko\n\
        kernel/drivers/md/dm-mod.ko: kernel/drivers/dax/dax.ko\n\
        kernel/drivers/dax/dax.ko:\n";

    fn order(names: &[&str], loaded: &mut BTreeSet<String>) -> Result<Vec<String>> {
        let index = ModuleIndex::parse(DEP, "kernel/drivers/virtio/virtio_pci.ko\n").unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        index.load_order(&names, loaded)
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let mut loaded = BTreeSet::new();
        assert_eq!(
            order(&["virtio-pci", "ext4"], &mut loaded).unwrap(),
            [
                "kernel/lib/crc16.ko",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/fs/mbcache.ko",
                "kernel/fs/ext4/ext4.ko"
            ]
        );
        assert_eq!(
            order(&["ext4", "dm_flakey", "dm-mod"], &mut loaded).unwrap(),
            [
                "kernel/drivers/dax/dax.ko",
                "kernel/drivers/md/dm-mod.ko",
                "kernel/drivers/md/dm-flakey.ko"
            ]
        );
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let error = order(&["ext4", "no-such"], &mut BTreeSet::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel has no module no_such, neither as a file nor built in"
        );
    }

    #[test]
    fn fates_follow_whole_path_components() {
        for kept in [
            "fs/ext4/ext4.ko.xz",
            "drivers/scsi/scsi_debug.ko",
            "drivers/nvme/host/nvme.ko",
            "drivers/virtio",
        ] {
            assert_eq!(Fate::of(kept), Fate::Kept, "{kept}");
        }
        for dropped in [
            "fs/nfs/nfs.ko",
            "drivers/gpu",
            "sound",
            "drivers/scsi/qla2xxx",
            "arch/x86/kvm/kvm.ko",
        ] {
            assert_eq!(Fate::of(dropped), Fate::Dropped, "{dropped}");
        }
        assert_eq!(
            Fate::of("fs/nfs_common/grace.ko"),
            Fate::Kept,
            "only nfs itself is dropped"
        );
        assert_eq!(Fate::of("drivers"), Fate::Undecided);
    }

    #[test]
    fn pruning_keeps_what_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "fs/ext4/ext4.ko.xz",
            "fs/nfs/nfs.ko",
            "drivers/scsi/sd_mod.ko",
            "drivers/gpu/x/y.ko",
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let mut compressed = Vec::new();
        prune(dir.path(), "", &mut compressed).unwrap();
        assert_eq!(compressed, [dir.path().join("fs/ext4/ext4.ko.xz")]);
        assert!(dir.path().join("drivers/scsi/sd_mod.ko").exists());
        assert!(!dir.path().join("drivers/gpu").exists() && !dir.path().join("fs/nfs").exists());
        fs::write(dir.path().join("lib.ko.zst"), "").unwrap();
        assert!(prune(dir.path(), "", &mut compressed).is_err());
    }
}
