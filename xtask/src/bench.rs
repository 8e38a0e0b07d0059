//! Benches.
use anyhow::{Result, bail};
use crate::{commands::Exit, options::Bench};
pub(crate) fn run(args: &Bench) -> Result<Exit> { bail!("{args:?}") }
