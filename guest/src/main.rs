//! What runs inside a guest: init, agent, workloads and checkers in one static
//! binary.
//!
//! The contract with the host, in one sentence: as process 1, mount what is
//! needed, load modules, switch to the root disk and start the agent; the agent
//! says hello on one virtio-serial port, takes requests from the other, and
//! answers each. If the agent ends, the guest powers off.

mod agent;
mod btf;
mod channel;
mod console;
mod devices;
mod dm;
mod errors;
mod init;
mod mounts;
mod process;
mod session;
mod syncs;
mod workload;

use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("agent") => agent::run(),
        Some(console::WORD) => console::become_shell(),
        Some(word) if std::process::id() != 1 => Err(anyhow::anyhow!(
            "unknown word {word:?}; this binary is the init of a plugpull guest and is not meant to be run by hand"
        )),
        // The kernel passes unknown words of its command line to init.
        _ if std::process::id() == 1 => init::run(),
        _ => Err(anyhow::anyhow!(
            "this binary is the init of a plugpull guest and is not meant to be run by hand"
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plugpull-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}
