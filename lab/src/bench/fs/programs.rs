//! Programs as load: git and PostgreSQL.

pub(super) mod checkout;
pub(super) mod pgbench;
