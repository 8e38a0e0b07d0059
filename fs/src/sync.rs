//! The locks and counters of the tables, from one place.

pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, atomic::AtomicU64};
