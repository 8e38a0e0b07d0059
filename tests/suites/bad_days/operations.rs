//! A failure that takes two operations of many is told with these two.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{
    Test,
    shards::{Bench, report},
};

pub(crate) const TESTS: &[Test] = &[(
    "a_failure_is_told_with_the_operations_it_takes",
    a_failure_is_told_with_the_operations_it_takes,
)];

/// Once the second file was made it forgets to sync the fifth.
const PROGRAM: &str = r#"
import hashlib, os, sys
import plugpull

def chosen(number, only):
    for part in only.split(","):
        first, _, last = part.partition("-")
        if int(first) <= number <= int(last or first):
            return True
    return False

directory, only = sys.argv[1:]
promises = plugpull.Promises()
whole = os.open(directory, os.O_RDONLY)
forgetful = False
for number in (n for n in range(1, 8) if chosen(n, only)):
    promises.mark("operation %d: make f%d" % (number, number))
    text = b"%d\n" % number * 3000
    name = "f%d" % number
    promises.begin(name, hashlib.sha256(text).hexdigest())
    file = os.open(os.path.join(directory, name), os.O_CREAT | os.O_WRONLY)
    os.write(file, text)
    if number != 5 or not forgetful:
        os.fsync(file)
        os.fsync(whole)
    promises.ack(name)
    forgetful = forgetful or number == 2
"#;

const SCENARIO: &str = r#"
[workload]
files      = ["forgets.py", "plugpull.py"]
run        = ["python3", "./forgets.py", "{dir}", "{operations}"]
operations = 7

[power-cut]
states = 60
fsck   = false
"#;

fn a_failure_is_told_with_the_operations_it_takes() -> Result<()> {
    let place = tempfile::tempdir()?;
    let bench = Bench::new(place.path(), "forgets", SCENARIO)?;
    let beside = place.path().join("forgets.bench");
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/plugpull.py");
    fs::copy(client, beside.join("plugpull.py")).context("copy the client")?;
    fs::write(beside.join("forgets.py"), PROGRAM)?;
    let run = bench.run("forgets", &[], 1)?;
    let case = report(&run)?.scenarios.pop().context("a case")?;
    let details: Vec<String> = case.failures.into_iter().map(|of| of.detail).collect();
    let wanted = "of 7 operations it takes 2: 2 (make f2), 5 (make f5)";
    ensure!(
        details.iter().any(|detail| detail.contains(wanted)),
        "{details:#?}"
    );
    Ok(())
}
