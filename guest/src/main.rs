//! What runs inside a guest: init, agent, workloads and checkers in one static binary.

fn main() {}
