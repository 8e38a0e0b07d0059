//! Zeroed memory that begins at a page boundary.
#![expect(unsafe_code, reason = "no safe allocation is aligned to pages")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

pub(crate) const PAGE_BYTES: usize = 4096;

/// Some pages of memory. The kernel may be told where they are and write to them, so they
/// are lent as a slice only through `&mut`.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for Pages {}

impl Pages {
    /// So many pages, at least one.
    pub(crate) fn new(count: usize) -> Self {
        let size = count.max(1) * PAGE_BYTES;
        let layout = Layout::from_size_align(size, PAGE_BYTES).unwrap_or(Layout::new::<u8>());
        // SAFETY: the size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Pages { start, layout }
    }

    /// All of it.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the allocation has `size` bytes, all of them initialised, and is
        // borrowed as long as this value is.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.layout.size()) }
    }

    /// Where it is, for the kernel.
    pub(crate) fn address(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}
