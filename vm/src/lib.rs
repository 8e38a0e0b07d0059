//! Guest images, accelerator probe, QEMU, templates and clones, guest channel, console watch.

pub mod cache;
pub mod host;
pub mod image;
pub mod lock;
pub mod process;
pub mod tools;
