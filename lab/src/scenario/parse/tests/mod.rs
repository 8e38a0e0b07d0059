//! What files say, what they may not say, and the exact words for it.

mod accepted;
mod refused;

use std::path::Path;

use crate::scenario::{ImageName, Scenario};

/// A file that is right; tests change a line of it.
const GOOD: &str = r#"about = "It keeps what it acknowledged"
profile = ["smoke", "full"]

[matrix]
image = ["debian12", "debian13"]
lower = ["ext4", "xfs"]
mount = ["plugpull-fs", "native"]

[disk]
size = "1 GiB"
cache = "volatile"

[workload]
builtin = "postgres-ledger"

[power-cut]
cuts = 10
states = 30
"#;

fn images() -> Vec<ImageName> {
    ["debian12", "debian13"].map(ImageName::new).into()
}

/// The scenario, or the whole text of what is wrong.
fn parse(text: &str) -> Result<Scenario, String> {
    Scenario::parse(Path::new("s.toml"), text, &images()).map_err(|bad| bad.to_string())
}

/// [`GOOD`] with one line replaced.
fn with(line: &str, by: &str) -> String {
    assert!(GOOD.contains(line), "{line}");
    GOOD.replacen(line, by, 1)
}
