//! Keys and values in pages: one page holds `PAGE_TOKENS` positions of one sequence, in all layers.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use cpu_kernels::{KvLayout, PAGE_TOKENS};
use enginecmp_shim::{Failure, Result};

pub type PageId = u32;

/// In a sequence's list, where a page has been given back because no later token looks at it.
pub const GONE: PageId = PageId::MAX;

const ALIGNMENT: usize = 64;

/// Memory of one page, aligned to a cache line.
struct Page {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: plain memory that nothing else points to; who writes where is decided by whoever holds `Pages` mutably.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: allocated in `Pages::take` with this very layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// All pages of a session. Memory is asked for when a page is first needed, and kept.
pub struct Pages {
    pub layout: KvLayout,
    layer_bytes: usize,
    layers: usize,
    pages: Vec<Page>,
    /// How many hold each page: sequences, and the prefix cache.
    holders: Vec<u32>,
    free: Vec<PageId>,
}

impl Pages {
    pub fn new(layout: KvLayout, layers: usize) -> Self {
        let layer_bytes = layout.page_bytes().next_multiple_of(ALIGNMENT);
        Self { layout, layer_bytes, layers, pages: Vec::new(), holders: Vec::new(), free: Vec::new() }
    }

    /// Bytes of keys and values that one position takes, in all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.layout.page_bytes() * self.layers / PAGE_TOKENS
    }

    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Pages that somebody holds.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    /// A page, held once.
    ///
    /// # Errors
    ///
    /// [`Failure::OutOfMemory`].
    pub fn take(&mut self) -> Result<PageId> {
        if let Some(page) = self.free.pop() {
            self.holders[page as usize] = 1;
            return Ok(page);
        }
        let refused = || {
            let tokens = self.pages.len() * PAGE_TOKENS;
            let line = format!(
                "no room for keys and values of more than {tokens} tokens; choose a scenario with fewer tokens in its cells"
            );
            Failure::OutOfMemory(line)
        };
        let size = self.layer_bytes.checked_mul(self.layers).ok_or_else(refused)?;
        let layout = Layout::from_size_align(size.max(1), ALIGNMENT).map_err(|_| refused())?;
        let page = PageId::try_from(self.pages.len()).ok().filter(|page| *page != GONE).ok_or_else(refused)?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        self.pages.push(Page { start, layout });
        self.holders.push(1);
        Ok(page)
    }

    /// Holds a page once more.
    pub fn share(&mut self, page: PageId) {
        self.holders[page as usize] += 1;
    }

    /// Whether somebody else holds it too.
    pub fn is_shared(&self, page: PageId) -> bool {
        self.holders[page as usize] > 1
    }

    pub fn give_back(&mut self, page: PageId) {
        if page == GONE {
            return;
        }
        let holders = &mut self.holders[page as usize];
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }

    /// Where a layer's part of a page begins; null for a page that is gone.
    pub fn address(&self, page: PageId, layer: usize) -> *mut u8 {
        assert!(layer < self.layers);
        match self.pages.get(page as usize) {
            // SAFETY: every page holds `layers` parts of this size.
            Some(page) => unsafe { page.start.as_ptr().add(layer * self.layer_bytes) },
            None => std::ptr::null_mut(),
        }
    }

    /// A copy of a page, held once.
    pub fn copy(&mut self, page: PageId) -> Result<PageId> {
        let copy = self.take()?;
        // SAFETY: both are whole pages, and not the same one.
        unsafe {
            let size = self.layer_bytes * self.layers;
            std::ptr::copy_nonoverlapping(self.address(page, 0), self.address(copy, 0), size);
        }
        Ok(copy)
    }
}

/// One sequence's place in the cache.
#[derive(Debug, Default)]
pub struct Sequence {
    pub pages: Vec<PageId>,
    /// Positions whose keys and values are there.
    pub len: usize,
}

impl Sequence {
    /// Makes room for positions up to `end`.
    pub fn reserve(&mut self, end: usize, pages: &mut Pages) -> Result<()> {
        while self.pages.len() * PAGE_TOKENS < end {
            self.pages.push(pages.take()?);
        }
        Ok(())
    }

    /// Forgets positions from `len` on, and gives back the pages that hold nothing else.
    pub fn truncate(&mut self, len: usize, pages: &mut Pages) {
        self.len = self.len.min(len);
        for page in self.pages.drain(len.div_ceil(PAGE_TOKENS).min(self.pages.len())..) {
            pages.give_back(page);
        }
    }

    /// Gives back pages of which only positions before `first` are left: a window has gone past them.
    pub fn forget_before(&mut self, first: usize, pages: &mut Pages) {
        let end = (first / PAGE_TOKENS).min(self.pages.len());
        for page in self.pages[..end].iter_mut().rev().take_while(|page| **page != GONE) {
            pages.give_back(std::mem::replace(page, GONE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpu_kernels::KvType;

    fn pages() -> Pages {
        Pages::new(KvLayout { kind: KvType::F16, kv_heads: 2, head_dim: 16 }, 3)
    }

    #[test]
    fn pages_are_reused_once_nobody_holds_them() {
        let mut pages = pages();
        let (mut one, mut other) = (Sequence::default(), Sequence::default());
        one.reserve(PAGE_TOKENS + 1, &mut pages).unwrap();
        assert_eq!((one.pages.len(), pages.held()), (2, 2));
        pages.share(one.pages[0]);
        other.pages.push(one.pages[0]);
        one.len = PAGE_TOKENS + 1;
        one.truncate(0, &mut pages);
        assert_eq!((one.len, pages.held()), (0, 1));
        assert!(!pages.is_shared(other.pages[0]));
        other.truncate(0, &mut pages);
        assert_eq!(pages.held(), 0);
        one.reserve(3 * PAGE_TOKENS, &mut pages).unwrap();
        assert_eq!(pages.pages.len(), 3, "freed pages come first");
    }

    #[test]
    fn a_window_gives_back_what_it_has_passed_and_no_more() {
        let mut pages = pages();
        let mut sequence = Sequence::default();
        sequence.reserve(4 * PAGE_TOKENS, &mut pages).unwrap();
        sequence.forget_before(2 * PAGE_TOKENS - 1, &mut pages);
        assert_eq!(pages.held(), 3);
        sequence.forget_before(2 * PAGE_TOKENS, &mut pages);
        sequence.forget_before(2 * PAGE_TOKENS, &mut pages);
        assert_eq!((pages.held(), sequence.pages[1]), (2, GONE));
        assert!(pages.address(GONE, 0).is_null());
        sequence.truncate(0, &mut pages);
        assert_eq!(pages.held(), 0);
    }

    #[test]
    fn no_memory_is_an_error() {
        let mut pages = pages();
        pages.layers = usize::MAX / pages.layer_bytes;
        assert!(
            matches!(pages.take(), Err(Failure::OutOfMemory(line)) if line.contains("choose a scenario with fewer tokens in its cells"))
        );
    }
}
