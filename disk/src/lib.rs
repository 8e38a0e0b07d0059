//! A virtual disk that records, errs and loses power, served over NBD.
//!
//! A [`Disk`] holds a [`View`] (a base image below copy-on-write changes) and writes every event
//! to a log. [`Disk::serve`] exports it on a UNIX socket to any NBD client, QEMU first of all.
//! Afterwards the log is a [`Recording`]: [`Recording::at`] says what a power cut at any moment
//! may leave, [`crash_state`] builds it as a [`View`] again, and that is the next disk's content.
//!
//! ```no_run
//! use plugpull_disk::*;
//! # fn main() -> anyhow::Result<()> {
//! let base = View::from_image("base.raw".as_ref())?;
//! let disk = Disk::create(base.clone(), "run.log".as_ref(), DiskConfig::default())?;
//! let server = disk.serve("run.sock".as_ref())?;
//! disk.arm(CutTrigger::Flush(12))?;
//! // ... a guest works on nbd+unix:///?socket=run.sock ...
//! disk.wait_cut(std::time::Duration::from_secs(60))?;
//! drop(server);
//! let recording = disk.finish()?;
//! let cut = recording.cut().expect("the power was cut");
//! let state = crash_state(&base, &recording, cut, &Keep::Subset(Seed(1)))?;
//! println!("{}: {} completed writes lost", state.id, state.dropped_completed.len());
//! # Ok(()) }
//! ```
//!
//! Simulated: a volatile write cache, honest or lying, and power cuts that keep any of the writes
//! not yet durable, whole or torn, early or late. Not simulated yet: errors, latency, corruption.
//! The exact rules stand in the documentation of [`model`], the file format in that of [`log`],
//! how many states are chosen among in that of [`explore`].

mod crash;
mod cuts;
mod device;
pub mod explore;
mod export;
pub mod interop;
pub mod log;
pub mod model;
pub mod nbd;
mod reads;
mod survivors;
mod table;
#[cfg(test)]
mod testing;
mod units;
mod view;

pub use crash::{CrashState, Cutter, Keep, PowerCut, crash_state};
pub use cuts::{CutCandidate, CutReason, choose_cuts};
pub use device::{Counts, CutTrigger, Disk, DiskConfig, DiskError};
pub use log::{Complete, End, Entry, Mark, Operation, Recording, Submit};
pub use model::CutState;
pub use nbd::Server;
pub use reads::Reads;
pub use survivors::{Part, Piece, Survivors};
pub use units::{
    AtomicUnit, ByteCount, CutPoint, Epoch, Honesty, RequestId, SECTOR_BYTES, Sector, Seed, Seq,
};
pub use view::{ContentDigest, View};
