//! The parser of kernel messages alone, on any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use plugpull_fuse::Request;

fuzz_target!(|input: (bool, &[u8])| {
    let (setxattr_ext, bytes) = input;
    // The parser wants its bytes at a multiple of 8.
    let mut room = vec![0; bytes.len() + 8];
    let start = room.as_ptr().align_offset(8);
    let aligned = &mut room[start..start + bytes.len()];
    aligned.copy_from_slice(bytes);
    let _parsed = Request::parse(aligned, setxattr_ext);
});
