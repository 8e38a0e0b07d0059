//! The locks and counters of the tables: the standard library's, or those of
//! [shuttle](https://docs.rs/shuttle), which tries orders of execution.
//!
//! The models are unit tests, so shuttle's come in only there: with the feature
//! `shuttle` the binary and the tests on real mounts are still built with the
//! standard ones.
//!
//! Simulated are the switches between threads, at every lock, every atomic
//! operation and wherever a model says so. All memory is sequentially consistent in
//! a model; what weaker orderings allow is not tried.

#[cfg(not(all(test, feature = "shuttle")))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, atomic::AtomicU64};

#[cfg(all(test, feature = "shuttle"))]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock, atomic::AtomicU64};

#[cfg(all(test, feature = "shuttle"))]
pub(crate) use explore::explore;
#[cfg(all(test, feature = "shuttle", feature = "mutants"))]
pub(crate) use explore::must_catch;

#[cfg(all(test, feature = "shuttle"))]
mod explore {
    use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
    use shuttle::{Config, Runner};

    /// Orders of execution that are tried with each scheduler.
    const SCHEDULES: usize = 3000;

    const SEED: u64 = 1;

    /// Switches between threads that the second scheduler spends its luck on: few are
    /// enough for most races (Burckhardt et al., "A Randomized Scheduler with
    /// Probabilistic Guarantees of Finding Bugs", ASPLOS 2010).
    const DEPTH: usize = 3;

    /// Runs a model under thousands of orders of execution: a fair random choice at
    /// each step, then few switches at random places. They follow from the seed, which
    /// is 1 unless `SHUTTLE_RANDOM_SEED` says otherwise.
    ///
    /// # Panics
    /// When the model does under one of them; shuttle then prints that one.
    pub(crate) fn explore(model: fn()) {
        run(RandomScheduler::new_from_seed(SEED, SCHEDULES), model);
        run(PctScheduler::new_from_seed(SEED, DEPTH, SCHEDULES), model);
    }

    fn run(scheduler: impl Scheduler + 'static, model: fn()) {
        Runner::new(scheduler, Config::new()).run(model);
    }

    /// Runs a model as this mutant, and panics unless the model does.
    #[cfg(feature = "mutants")]
    pub(crate) fn must_catch(mutant: crate::mutant::Mutant, model: fn()) {
        crate::mutant::select(mutant);
        let explored = std::panic::catch_unwind(|| explore(model));
        assert!(explored.is_err(), "{mutant} is not caught");
    }
}
