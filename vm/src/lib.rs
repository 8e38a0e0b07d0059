//! Boots real kernels in QEMU: guest images, accelerator probe, templates and
//! clones, the guest's channel and console.
//!
//! Nothing here knows of crash states, scenarios or verdicts.

pub mod accel;
pub mod cache;
pub mod console;
pub mod guest;
pub mod host;
pub mod image;
pub mod initramfs;
pub mod lock;
pub mod machine;
mod monitor;
pub mod payload;
pub mod peers;
pub mod process;
mod qmp;
pub mod template;
pub mod tools;

pub use guest::Guest;
pub use monitor::Trouble;
