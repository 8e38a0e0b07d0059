//! Process 1: from the kernel's hand-over to a running agent.
//!
//! The initramfs holds this binary and the modules needed to reach the root
//! disk; everything else comes from the root disk, read-only, with tmpfs over
//! the places that programs write to.

use std::{
    ffi::CString,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::{
    mount::{MountFlags, mount, mount_move},
    process::{WaitOptions, chdir, chroot},
    system::{RebootCommand, finit_module, reboot},
};

use crate::devices;

/// A mount of the guest's own making.
struct Fixed {
    source: &'static str,
    at: &'static str,
    fs: &'static str,
    flags: MountFlags,
    options: &'static str,
}

const fn fixed(
    source: &'static str,
    at: &'static str,
    fs: &'static str,
    options: &'static str,
) -> Fixed {
    Fixed {
        source,
        at,
        fs,
        flags: MountFlags::empty(),
        options,
    }
}

/// Mounted before anything else, and carried over to the root disk.
const KERNEL_MOUNTS: &[Fixed] = &[
    fixed("proc", "/proc", "proc", ""),
    fixed("sysfs", "/sys", "sysfs", ""),
    fixed("devtmpfs", "/dev", "devtmpfs", ""),
];

/// Mounted once the root disk is in place. `/mnt` holds every mount point that
/// a scenario asks for.
const WRITABLE_MOUNTS: &[Fixed] = &[
    fixed("tmpfs", "/run", "tmpfs", "mode=755"),
    fixed("tmpfs", "/tmp", "tmpfs", "mode=1777"),
    fixed("tmpfs", "/mnt", "tmpfs", "mode=755"),
    fixed("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),
    fixed("devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666"),
    fixed("tracefs", "/sys/kernel/tracing", "tracefs", ""),
];

/// Kernel settings that make trouble visible and soon.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/kernel/hung_task_timeout_secs", "60"),
    ("/proc/sys/kernel/hung_task_warnings", "10"),
    ("/proc/sys/kernel/printk", "5 4 1 7"),
];

/// Run as process 1; returns only on error.
pub(crate) fn run() -> Result<()> {
    let outcome = boot();
    if let Err(error) = &outcome {
        // The console is all the host sees of an init that failed.
        eprintln!("plugpull-init: failed: {error:#}");
    }
    // Returning would panic the kernel and bury the message above.
    rustix::fs::sync();
    reboot(RebootCommand::PowerOff).context("power off")?;
    outcome
}

fn boot() -> Result<()> {
    for entry in KERNEL_MOUNTS {
        mount_fixed(Path::new("/"), entry)?;
    }
    println!("plugpull-init: started");
    load_modules(&read_list("/etc/plugpull/modules")?)?;
    if fs::read_to_string("/proc/cmdline")?
        .split_whitespace()
        .any(|word| word == "plugpull.probe")
    {
        // A host that only asks whether its accelerator can boot this kernel.
        println!("plugpull-init: probe answered");
        return Ok(());
    }
    let late = read_list("/etc/plugpull/modules-late")?;
    switch_root()?;
    for entry in WRITABLE_MOUNTS {
        mount_fixed(Path::new("/"), entry)?;
    }
    load_modules(&late)?;
    for (path, value) in SETTINGS {
        fs::write(path, value).with_context(|| format!("set {path} to {value}"))?;
    }
    println!("plugpull-init: root disk ready");
    run_agent()
}

fn mount_fixed(root: &Path, entry: &Fixed) -> Result<()> {
    let at = root.join(entry.at.trim_start_matches('/'));
    // Mount points on the read-only root disk exist; elsewhere they are made.
    if !at.exists() {
        fs::create_dir_all(&at).with_context(|| format!("make {}", at.display()))?;
    }
    let options = CString::new(entry.options)?;
    match mount(entry.source, &at, entry.fs, entry.flags, options.as_c_str()) {
        // Kernels built with CONFIG_DEVTMPFS_MOUNT have been here before us.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mount {} on {}", entry.fs, at.display())),
    }
}

fn read_list(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

/// Load modules, one path a line, in this order, which puts each behind what
/// it depends on.
fn load_modules(list: &str) -> Result<()> {
    for path in list.lines().filter(|line| !line.is_empty()) {
        let module = fs::File::open(path).with_context(|| format!("open module {path}"))?;
        match finit_module(module.as_fd(), c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("load module {path}")),
        }
    }
    Ok(())
}

fn switch_root() -> Result<()> {
    let disk = devices::by_serial("root")?;
    let new_root = PathBuf::from("/newroot");
    fs::create_dir_all(&new_root)?;
    mount(
        &disk,
        &new_root,
        "ext4",
        MountFlags::RDONLY | MountFlags::NOATIME,
        c"",
    )
    .with_context(|| format!("mount the root disk {}", disk.display()))?;
    for entry in KERNEL_MOUNTS {
        let to = new_root.join(entry.at.trim_start_matches('/'));
        mount_move(entry.at, &to)
            .with_context(|| format!("move {} to {}", entry.at, to.display()))?;
    }
    chdir(&new_root)?;
    mount_move(".", "/").context("move the root disk to /")?;
    chroot(".").context("chroot to the root disk")?;
    chdir("/")?;
    Ok(())
}

/// Start the agent and reap until it ends.
///
/// The agent is a process of its own, so that process 1 can reap orphans
/// without stealing the exit status of the agent's children. It is started
/// here and not by the process helper, whose children are waited for one by
/// one.
fn run_agent() -> Result<()> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the agent's output is the console, and it has no deadline"
    )]
    let agent = std::process::Command::new("/proc/self/exe")
        .arg("agent")
        .spawn()
        .context("start the agent")?;
    let agent = rustix::process::Pid::from_child(&agent);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == agent => {
                anyhow::bail!("the agent ended: {status:?}");
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the agent"),
        }
    }
}
