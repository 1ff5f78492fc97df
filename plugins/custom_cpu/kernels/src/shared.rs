//! A slice whose parts several threads write, each its own.

use std::marker::PhantomData;

pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

impl<T> Clone for SharedMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedMut<'_, T> {}

// SAFETY: `part` hands out what a `&mut [T]` would, and its callers keep the parts apart.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        SharedMut { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// # Safety
    /// Parts that live at the same time don't overlap.
    ///
    /// # Panics
    /// Where the part leaves the slice.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, from: usize, count: usize) -> &'a mut [T] {
        assert!(from <= self.len && count <= self.len - from, "part {from}+{count} of {}", self.len);
        // SAFETY: inside the slice; apart from the others by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), count) }
    }
}
