//! `cargo xtask`: a thin command line over `plugpull-lab`.

mod bench;
mod ci;
mod commands;
mod nextest;
mod options;
mod report;
mod repro;
mod share;
mod shell;
mod signals;
mod test;

use std::process::ExitCode;

use clap::Parser;

use options::{Command, Options};

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("PLUGPULL_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    let options = Options::parse();
    let outcome = match options.command {
        Command::TestVm(args) => test::test_vm(&args),
        Command::Test(args) => test::test(&args),
        Command::Repro(args) => repro::run(&args),
        Command::Merge(args) => share::merge(&args),
        Command::Shell(args) => shell::run(&args),
        Command::Image(args) => commands::image(&args),
        Command::Doctor(args) => commands::doctor(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Ci(args) => ci::run(&args),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = commands::Exit::of(&error);
            let text = format!("{error:#}");
            // Complaints about a user's file bring their own heading.
            let heading = if text.starts_with("error") {
                ""
            } else {
                "error: "
            };
            eprintln!("{heading}{text}");
            exit.into()
        }
    }
}
