//! The mount command of plugpull-fs.

fn main() {}
