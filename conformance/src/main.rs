//! The command; see [`plugpull_conformance::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    plugpull_conformance::cli::main()
}
