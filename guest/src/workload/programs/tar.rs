//! A tree of every kind of file is made, packed by tar and unpacked beside
//! itself. Both trees are compared with the plan, attribute by attribute.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{self as unix, FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use plugpull_protocol::workload::plan::{Archive, Member, MemberKind};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::{Stage, flip, parting};

/// What is packed and what is unpacked, below the workload's directory.
const TREES: [&str; 2] = ["source", "copy"];
/// Extended attributes of both namespaces, access lists, numeric owners.
const FAITHFUL: [&str; 4] = [
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
    "--numeric-owner",
];

/// Make the tree, pack it, unpack it.
pub(super) fn run(stage: &mut Stage, plan: &Archive) -> Result<()> {
    let [source, copy] = TREES.map(|name| stage.dir.join(name));
    for dir in [&source, &copy] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    if !make(stage, plan, &source) {
        return Ok(());
    }
    let archive = stage.dir.join("tree.tar").into_os_string();
    // Only this format holds times before 1970 and after 2242, nanoseconds,
    // and names of any length.
    let pack = ["--create", "--format=posix", "--sparse"];
    let pack = tar(&pack, &source, archive.clone(), &["."]);
    if !stage.step("tar --create", pack, &[("LC_ALL", "C")], Some(""))? {
        return Ok(());
    }
    let unpack = [
        "--extract",
        "--preserve-permissions",
        "--same-owner",
        // Of times in the future, which are meant.
        "--warning=no-timestamp",
    ];
    let unpack = tar(&unpack, &copy, archive, &[]);
    stage.step("tar --extract", unpack, &[("LC_ALL", "C")], Some(""))?;
    Ok(())
}

fn tar(act: &[&str], tree: &Path, archive: OsString, what: &[&str]) -> Vec<OsString> {
    let mut argv = vec![OsString::from("tar")];
    argv.extend(act.iter().chain(&FAITHFUL).map(OsString::from));
    argv.extend(["--directory".into(), tree.into(), "--file".into(), archive]);
    argv.extend(what.iter().map(OsString::from));
    argv
}

/// Make the tree; false when something could not be made.
fn make(stage: &mut Stage, plan: &Archive, root: &Path) -> bool {
    let directories = plan.directories();
    let members = (0..plan.files).map(|number| plan.member(number));
    for member in directories.iter().cloned().chain(members) {
        if let Err(error) = make_one(plan, root, &member) {
            stage.differs(|| format!("make {}: {error:#}", shown(&member)));
            return false;
        }
    }
    // Children first: making one changes the time of its directory.
    for member in directories.iter().rev() {
        if let Err(error) = set_times(&at(root, member), member) {
            stage.differs(|| format!("set the time of {}: {error}", shown(member)));
            return false;
        }
    }
    true
}

fn make_one(plan: &Archive, root: &Path, member: &Member) -> Result<()> {
    let path = at(root, member);
    let device = |kind, major, minor| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), device)
    };
    match &member.kind {
        MemberKind::File(content) => fs::write(&path, content).context("write")?,
        MemberKind::Sparse { size, at, data } => {
            let file = File::create_new(&path).context("create")?;
            file.set_len(*size).context("set the length")?;
            file.write_all_at(data, *at).context("write")?;
        }
        MemberKind::HardLink(to) => {
            let to = at(root, &plan.member(*to));
            // Everything else is the other name's.
            return fs::hard_link(to, &path).context("link");
        }
        MemberKind::Link(target) => {
            unix::symlink(OsStr::from_bytes(target), &path).context("symlink")?;
        }
        MemberKind::Directory => fs::create_dir(&path).context("mkdir")?,
        MemberKind::Fifo => device(FileType::Fifo, 0, 0).context("mknod")?,
        MemberKind::CharDevice(major, minor) => {
            device(FileType::CharacterDevice, *major, *minor).context("mknod")?;
        }
        MemberKind::BlockDevice(major, minor) => {
            device(FileType::BlockDevice, *major, *minor).context("mknod")?;
        }
    }
    // Mode after owner: a change of owner clears set-id bits.
    let (uid, gid) = member.owner;
    unix::lchown(&path, Some(uid), Some(gid)).context("chown")?;
    if !matches!(member.kind, MemberKind::Link(_)) {
        fs::set_permissions(&path, Permissions::from_mode(member.mode)).context("chmod")?;
    }
    for (name, value) in &member.xattrs {
        rustix::fs::lsetxattr(&path, *name, value, XattrFlags::empty())
            .with_context(|| format!("set {name}"))?;
    }
    set_times(&path, member).context("set times")
}

fn set_times(path: &Path, member: &Member) -> io::Result<()> {
    let (tv_sec, nanos) = member.mtime;
    let time = Timespec {
        tv_sec,
        tv_nsec: nanos.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    Ok(rustix::fs::utimensat(
        CWD,
        path,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Compare both trees with the plan.
pub(super) fn check(stage: &mut Stage, plan: &Archive) {
    for name in TREES {
        let root = stage.dir.join(name);
        let mut known = HashSet::new();
        let members = (0..plan.files).map(|number| plan.member(number));
        for member in plan.directories().into_iter().chain(members) {
            match difference(plan, &root, &member) {
                Ok(None) => stage.run.files += 1,
                Ok(Some(told)) => stage.differs(|| format!("{name}/{}: {told}", shown(&member))),
                Err(error) => stage.differs(|| format!("{name}/{}: {error:#}", shown(&member))),
            }
            known.insert(member.path);
        }
        if let Err(error) = strangers(stage, &root, &root, &known) {
            stage.differs(|| format!("{name}: {error:#}"));
        }
    }
}

/// What is wrong with a member, if anything.
fn difference(plan: &Archive, root: &Path, member: &Member) -> Result<Option<String>> {
    let path = at(root, member);
    let found = fs::symlink_metadata(&path).context("stat")?;
    if let MemberKind::HardLink(to) = member.kind {
        let to = at(root, &plan.member(to));
        let to = fs::symlink_metadata(&to).context("stat the first name")?;
        let same = (found.ino(), found.nlink()) == (to.ino(), 2);
        return Ok((!same).then(|| "is no second name of the same inode".into()));
    }
    if let Some(told) = another_kind(member, &found, &path)? {
        return Ok(Some(told));
    }
    let link = matches!(member.kind, MemberKind::Link(_));
    let mode = found.mode() & 0o7777;
    if !link && mode != member.mode {
        return Ok(Some(format!("mode {mode:o} instead of {:o}", member.mode)));
    }
    let owner = (found.uid(), found.gid());
    if owner != member.owner {
        return Ok(Some(format!(
            "owner {owner:?} instead of {:?}",
            member.owner
        )));
    }
    let mtime = (found.mtime(), found.mtime_nsec() as u32);
    if mtime != member.mtime {
        return Ok(Some(format!(
            "modified at {mtime:?} instead of {:?}",
            member.mtime
        )));
    }
    for (name, expected) in &member.xattrs {
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(&path, *name, &mut value[..]);
        let len = len.with_context(|| format!("get {name}"))?;
        if value[..len] != **expected {
            return Ok(Some(format!(
                "{name}: {}",
                parting(expected, &value[..len])
            )));
        }
    }
    Ok(None)
}

/// Whether it is another kind of file, or has another content.
fn another_kind(member: &Member, found: &fs::Metadata, path: &Path) -> Result<Option<String>> {
    let kind = found.file_type();
    let device = |major, minor| found.rdev() == rustix::fs::makedev(major, minor);
    let right = match &member.kind {
        MemberKind::File(expected) if kind.is_file() => {
            let content = fs::read(path).context("read")?;
            if content != *expected {
                return Ok(Some(parting(expected, &content)));
            }
            content.len() as u64 == found.len()
        }
        MemberKind::Sparse { size, at, data } if kind.is_file() => {
            return sparse(path, found, *size, *at, data);
        }
        MemberKind::Link(target) if kind.is_symlink() => {
            let found = fs::read_link(path).context("readlink")?;
            found.as_os_str().as_bytes() == target
        }
        MemberKind::Directory => kind.is_dir(),
        MemberKind::Fifo => kind.is_fifo(),
        MemberKind::CharDevice(major, minor) => kind.is_char_device() && device(*major, *minor),
        MemberKind::BlockDevice(major, minor) => kind.is_block_device() && device(*major, *minor),
        _ => false,
    };
    let told = || {
        format!(
            "{kind:?} of device {} instead of {:?}",
            found.rdev(),
            member.kind
        )
    };
    Ok((!right).then(told))
}

/// A hole reads as zeros and takes no space.
fn sparse(
    path: &Path,
    found: &fs::Metadata,
    size: u64,
    at: u64,
    data: &[u8],
) -> Result<Option<String>> {
    if found.len() != size {
        return Ok(Some(format!("{} bytes instead of {size}", found.len())));
    }
    let mut expected = vec![0; size as usize];
    expected[at as usize..at as usize + data.len()].copy_from_slice(data);
    let content = fs::read(path).context("read")?;
    if content != expected {
        return Ok(Some(parting(&expected, &content)));
    }
    let allocated = found.blocks() * 512;
    Ok((allocated > size / 2).then(|| format!("{allocated} bytes allocated of {size}")))
}

/// Everything in a tree that no plan knows.
fn strangers(stage: &mut Stage, root: &Path, dir: &Path, known: &HashSet<Vec<u8>>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("list {}", dir.display()))?;
        let path = entry.path();
        let below = path.strip_prefix(root).unwrap_or(&path);
        if !known.contains(below.as_os_str().as_bytes()) {
            stage.differs(|| format!("{} is nobody's", path.display()));
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            strangers(stage, root, &path, known)?;
        }
    }
    Ok(())
}

/// Flip a bit of a file that tar unpacked.
pub(super) fn damage(dir: &Path, plan: &Archive) -> Result<()> {
    let mut members = (0..plan.files).map(|number| plan.member(number));
    let long = members.find(|m| matches!(&m.kind, MemberKind::File(content) if content.len() > 99));
    match long {
        Some(member) => flip(&at(&dir.join(TREES[1]), &member), 99),
        None => bail!("the tree has no file of 100 bytes"),
    }
}

fn at(root: &Path, member: &Member) -> std::path::PathBuf {
    root.join(OsStr::from_bytes(&member.path))
}

fn shown(member: &Member) -> String {
    member.path.escape_ascii().to_string()
}
