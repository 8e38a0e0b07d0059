//! The command line of the testbed: cargo xtask.

fn main() {}
