//! Counts what the host's half of this program holds. Guests run on threads of their own, which are left out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static GUEST: Cell<bool> = const { Cell::new(false) };
}

/// Leaves out what the present thread allocates from now on.
pub(crate) fn leave_out_this_thread() {
    GUEST.set(true);
}

/// Bytes held now.
pub(crate) fn held() -> usize {
    HELD.load(Ordering::Relaxed)
}

/// Begins anew to look for the most that is held at once.
pub(crate) fn forget_peak() {
    PEAK.store(held(), Ordering::Relaxed);
}

/// The most that was held at once since.
pub(crate) fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}

fn counts() -> bool {
    // A thread that ends has no flag any more.
    !GUEST.try_with(Cell::get).unwrap_or(false)
}

fn grow(by: usize) {
    if counts() {
        let now = HELD.fetch_add(by, Ordering::Relaxed) + by;
        PEAK.fetch_max(now, Ordering::Relaxed);
    }
}

fn shrink(by: usize) {
    if counts() {
        HELD.fetch_sub(by, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its nature; this one only counts")]
// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: it came from the system's allocator with this layout.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grow(size);
        shrink(layout.size());
        // SAFETY: it came from the system's allocator with this layout.
        unsafe { System.realloc(place, layout, size) }
    }
}
