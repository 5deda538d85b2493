//! A heap inside of the module's first memory.
//!
//! The host gives every call fresh memory. A module that never grows it costs no system call; one that does costs two, which
//! also stop the process's other threads for a moment. So what is allocated comes from a fixed arena first, and
//! only what does not fit from the usual allocator, which grows the memory.

#![warn(clippy::undocumented_unsafe_blocks)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::{Cell, UnsafeCell},
    ptr,
};

/// With the stack that `build.rs` asks for and the data of most modules it fills two pages of WebAssembly. A payload of a few
/// kilobytes and what is made of it fit.
#[cfg(target_arch = "wasm32")]
const SIZE: usize = 30 << 10;

#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ARENA: Arena<SIZE> = Arena::new();

/// Gives out memory from the start to the end, and takes back what was given last only: an instance lives for one call, and
/// what it left is gone with it.
pub(crate) struct Arena<const N: usize> {
    memory: UnsafeCell<Memory<N>>,
    /// Offset of the first free byte.
    top: Cell<usize>,
}

/// The alignment of what compilers ask for most, so that the first allocation wastes nothing.
#[repr(align(16))]
struct Memory<const N: usize>([u8; N]);

// SAFETY: the target has no threads, and this type is used elsewhere by tests only, each with an arena of its own.
unsafe impl<const N: usize> Sync for Arena<N> {}

impl<const N: usize> Arena<N> {
    pub(crate) const fn new() -> Arena<N> {
        Arena { memory: UnsafeCell::new(Memory([0; N])), top: Cell::new(0) }
    }

    fn base(&self) -> *mut u8 {
        self.memory.get().cast()
    }

    /// Where a block begins, if it is one of the arena's.
    fn offset(&self, block: *mut u8) -> Option<usize> {
        let offset = block.addr().checked_sub(self.base().addr())?;
        (offset < N).then_some(offset)
    }

    fn take(&self, layout: Layout) -> Option<*mut u8> {
        let base = self.base().addr();
        let start = (base + self.top.get()).checked_next_multiple_of(layout.align())? - base;
        let end = start.checked_add(layout.size())?;
        // A block of no bytes at the very end would not be known again.
        if end > N || start >= N {
            return None;
        }
        self.top.set(end);
        // SAFETY: `start` is within the arena.
        Some(unsafe { self.base().add(start) })
    }
}

// SAFETY: blocks of the arena do not overlap, since `top` only goes down to the start of the last one when that is freed;
// they are aligned, and stay where they are. All other blocks are the system's from beginning to end.
unsafe impl<const N: usize> GlobalAlloc for Arena<N> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some(block) => block,
            // SAFETY: the caller's promises are the system's conditions.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match self.offset(block) {
            Some(start) if start + layout.size() == self.top.get() => self.top.set(start),
            Some(_) => {}
            // SAFETY: a block that is not the arena's is the system's.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Some(start) = self.offset(block) else {
            // SAFETY: a block that is not the arena's is the system's.
            return unsafe { System.realloc(block, layout, new_size) };
        };
        let last = start + layout.size() == self.top.get();
        if last && new_size <= N - start {
            self.top.set(start + new_size);
            return block;
        }
        if new_size <= layout.size() {
            return block;
        }
        // SAFETY: the caller promises that the new size is one that a layout of this alignment may have.
        let grown = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: the new block is larger, and does not overlap the old one, which is still taken.
        unsafe {
            let new = self.alloc(grown);
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size());
                self.dealloc(block, layout);
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn the_last_block_grows_shrinks_and_is_freed_in_place() {
        let arena = Arena::<1024>::new();
        // SAFETY: every block is used as it was asked for.
        unsafe {
            let first = arena.alloc(layout(10, 1));
            let last = arena.alloc(layout(100, 8));
            assert_eq!(last.addr() % 8, 0);
            assert_eq!(arena.realloc(last, layout(100, 8), 500), last);
            assert_eq!(arena.realloc(last, layout(500, 8), 50), last);
            assert_eq!(arena.top.get(), 16 + 50);
            arena.dealloc(last, layout(50, 8));
            assert_eq!(arena.alloc(layout(1, 8)), last);
            // Not the last one: it moves, and takes its bytes along.
            first.write_bytes(7, 10);
            let moved = arena.realloc(first, layout(10, 1), 20);
            assert_ne!(moved, first);
            assert_eq!(std::slice::from_raw_parts(moved, 10), [7; 10]);
        }
    }

    #[test]
    fn what_does_not_fit_is_the_systems() {
        let arena = Arena::<64>::new();
        // SAFETY: every block is used as it was asked for, and freed once.
        unsafe {
            let block = arena.alloc(layout(40, 1));
            block.write_bytes(9, 40);
            assert!(arena.offset(block).is_some());
            let moved = arena.realloc(block, layout(40, 1), 4000);
            assert!(arena.offset(moved).is_none());
            assert_eq!(std::slice::from_raw_parts(moved, 40), [9; 40]);
            assert_eq!(arena.top.get(), 0, "the old block was the last one");
            let moved = arena.realloc(moved, layout(4000, 1), 8);
            assert_eq!(std::slice::from_raw_parts(moved, 8), [9; 8]);
            arena.dealloc(moved, layout(8, 1));
            // The arena filled to the last byte.
            let all = arena.alloc(layout(64, 16));
            assert!(arena.offset(all).is_some());
            let none = arena.alloc(layout(1, 1));
            assert!(arena.offset(none).is_none());
            arena.dealloc(none, layout(1, 1));
        }
    }

    /// Blocks of all sizes and alignments, taken, moved and freed in any order, keep their bytes.
    #[test]
    fn blocks_do_not_overlap() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % 1_000_003).unwrap() % below
        };
        let arena = Arena::<4096>::new();
        let mut blocks: Vec<(*mut u8, Layout, u8)> = Vec::new();
        for round in 0..20_000 {
            let mark = u8::try_from(round % 251).unwrap();
            // SAFETY: blocks are written within their size, and freed once.
            unsafe {
                match random(3) {
                    0 if !blocks.is_empty() => {
                        let (block, layout, _) = blocks.swap_remove(random(blocks.len()));
                        arena.dealloc(block, layout);
                    }
                    1 if !blocks.is_empty() => {
                        let (block, old, mark) = blocks.swap_remove(random(blocks.len()));
                        let size = 1 + random(300);
                        let moved = arena.realloc(block, old, size);
                        let kept = std::slice::from_raw_parts(moved, size.min(old.size()));
                        assert!(kept.iter().all(|b| *b == mark), "bytes were lost in round {round}");
                        moved.write_bytes(mark, size);
                        blocks.push((moved, layout(size, old.align()), mark));
                    }
                    _ => {
                        let layout = layout(1 + random(300), 1 << random(6));
                        let block = arena.alloc(layout);
                        assert_eq!(block.addr() % layout.align(), 0);
                        block.write_bytes(mark, layout.size());
                        blocks.push((block, layout, mark));
                    }
                }
                for (block, layout, mark) in &blocks {
                    let bytes = std::slice::from_raw_parts(*block, layout.size());
                    assert!(bytes.iter().all(|b| b == mark), "a block was overwritten in round {round}");
                }
                // Back to an empty arena now and then, or all would soon be the system's.
                if blocks.len() > 40 {
                    while let Some((block, layout, _)) = blocks.pop() {
                        arena.dealloc(block, layout);
                    }
                    arena.top.set(0);
                }
            }
        }
    }
}
