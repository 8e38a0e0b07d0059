//! What runs inside a guest: init, agent, workloads and checkers in one static binary.

mod process;
mod workload;

fn main() {}
