//! The whole server on one end of a socket, and on the other a kernel gone mad:
//! whatever it sends, what wants an answer gets exactly one. Needs root, for a small
//! tmpfs of its own to serve.
#![no_main]

#[path = "../../tests/relay/kernel.rs"]
mod kernel;

use std::sync::{Mutex, OnceLock};

use kernel::Kernel;
use libfuzzer_sys::fuzz_target;

static KERNEL: OnceLock<Mutex<Kernel>> = OnceLock::new();

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (opcode, node, body) = input;
    let kernel = KERNEL.get_or_init(|| Mutex::new(Kernel::with_server()));
    let mut kernel = kernel.lock().unwrap();
    kernel.ask(u32::from(opcode) % 64, u64::from(node), body);
});
