//! placeholder
use super::Env;
use plugpull_protocol::{Observation, WorkloadRequest};
pub(super) fn run(_request: WorkloadRequest, _env: &Env) -> anyhow::Result<Observation> {
    anyhow::bail!("none")
}
