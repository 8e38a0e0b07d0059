//! Benches.
use crate::{commands::Exit, options::Bench};
use anyhow::{Result, bail};
pub(crate) fn run(args: &Bench) -> Result<Exit> {
    bail!("{args:?}")
}
