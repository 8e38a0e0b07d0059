//! Turns a [`Cmd`] into a running child: streams, group, parent-death signal.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use super::{Cmd, Input, Sink};

/// A command ready to fork, and where to send the child.
type Job = (Command, mpsc::Sender<io::Result<Child>>);

/// The way to the thread that starts processes, once there is one.
static SPAWNER: OnceLock<Result<mpsc::Sender<Job>, String>> = OnceLock::new();

/// Whether the thread that starts processes is there already.
pub(super) fn has_begun() -> bool {
    SPAWNER.get().is_some()
}

/// Starts `cmd` from the thread that lives as long as this process, so that the
/// parent-death signal means the death of the process.
pub(super) fn from_long_lived_thread(cmd: Cmd) -> io::Result<(Child, bool)> {
    let own_group = cmd.own_group;
    let command = prepare(cmd, Stdio::null);
    let spawner = SPAWNER
        .get_or_init(start_spawner)
        .as_ref()
        .map_err(|why| io::Error::other(why.as_str()))?;
    let (reply, answer) = mpsc::channel();
    let gone = || io::Error::other("the spawner thread has ended");
    spawner.send((command, reply)).map_err(|_unsent| gone())?;
    let child = answer.recv().map_err(|_closed| gone())??;
    Ok((child, own_group))
}

/// Starts `cmd` from the calling thread, its unredirected output captured.
pub(super) fn from_this_thread(cmd: Cmd) -> io::Result<Child> {
    prepare(cmd, Stdio::piped).spawn()
}

fn start_spawner() -> Result<mpsc::Sender<Job>, String> {
    let (jobs, inbox) = mpsc::channel::<Job>();
    std::thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            // The sender is in a static, so this loop ends with the process.
            for (mut command, reply) in inbox {
                // A caller that has gone away takes its child with it: there is
                // nobody else to reap it.
                if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        })
        .map(|_thread| jobs)
        .map_err(|error| format!("cannot start the spawner thread: {error}"))
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one helper that starts processes"
)]
fn prepare(cmd: Cmd, unredirected: fn() -> Stdio) -> Command {
    let mut command = Command::new(&cmd.program);
    command.args(&cmd.args).envs(cmd.env);
    if let Some(dir) = &cmd.dir {
        command.current_dir(dir);
    }
    let output = |sink| match sink {
        Sink::Default => unredirected(),
        Sink::File(file) => Stdio::from(file),
    };
    command
        .stdout(output(cmd.stdout))
        .stderr(output(cmd.stderr));
    command.stdin(match cmd.stdin {
        Input::Null => Stdio::null(),
        Input::Bytes(_) => Stdio::piped(),
        Input::File(file) => Stdio::from(file),
    });
    if cmd.own_group {
        command.process_group(0);
    }
    before_exec(&mut command, cmd.inherited);
    command
}

#[expect(
    unsafe_code,
    reason = "pre_exec is the only way to set the parent-death signal and to pass descriptors"
)]
fn before_exec(command: &mut Command, inherited: Vec<OwnedFd>) {
    let parent = getpid();
    let hook = move || {
        // Cleared here and not in the parent, where another child that starts
        // at the same time would inherit the descriptor too.
        for fd in &inherited {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the signal was asked for; then it
        // would never come.
        if getppid() == Some(parent) {
            Ok(())
        } else {
            Err(io::Error::from(rustix::io::Errno::SRCH))
        }
    };
    // SAFETY: the hook runs between fork and exec, where only
    // async-signal-safe calls are allowed: it makes plain system calls and
    // neither allocates nor takes a lock.
    unsafe { command.pre_exec(hook) };
}
