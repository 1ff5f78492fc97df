//! Memory for weights: on huge pages where the system grants them, touched first by whoever writes it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

const HUGE: usize = 2 << 20;

/// What small matrices share, so that they lie on huge pages too.
const ARENA: usize = 32 << 20;

/// Pages from the system, given back when dropped.
struct Mapping {
    address: *mut libc::c_void,
    bytes: usize,
    /// Aligned to a huge page, followed by as many bytes as were asked for.
    start: *mut u8,
}

// SAFETY: an address and its length.
unsafe impl Send for Mapping {}
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` zero bytes that no page backs yet.
    fn new(len: usize) -> io::Result<Mapping> {
        let too_large = || io::Error::new(io::ErrorKind::OutOfMemory, "the size overflows");
        let bytes = len.checked_add(HUGE).ok_or_else(too_large)?;
        // SAFETY: a fresh anonymous mapping.
        let address = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_PRIVATE | libc::MAP_ANON, -1, 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = address.wrapping_byte_add((address as usize).next_multiple_of(HUGE) - address as usize);
        #[cfg(target_os = "linux")]
        // SAFETY: inside the mapping. A refusal leaves small pages, which are right too.
        unsafe {
            libc::madvise(start, len, libc::MADV_HUGEPAGE)
        };
        Ok(Mapping { address, bytes, start: start.cast() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, whole.
        unsafe { libc::munmap(self.address, self.bytes) };
    }
}

/// The arena that small pieces are cut from, and what of it is taken. Nothing is ever returned to it: it stays zero.
static CURRENT: Mutex<Option<(Arc<Mapping>, usize)>> = Mutex::new(None);

/// Zeroed memory of fixed size, aligned to 64 bytes.
pub struct Memory {
    start: *mut u8,
    len: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: owned, nobody else's part of the mapping.
unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// The system's, where it has no memory to map.
    pub fn new(len: usize) -> io::Result<Memory> {
        if len > ARENA / 2 {
            let mapping = Arc::new(Mapping::new(len)?);
            return Ok(Memory { start: mapping.start, len, _mapping: mapping });
        }
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (mapping, taken) = match current.take() {
            Some((mapping, taken)) if ARENA - taken >= len => (mapping, taken),
            _ => (Arc::new(Mapping::new(ARENA)?), 0),
        };
        let memory = Memory { start: mapping.start.wrapping_add(taken), len, _mapping: Arc::clone(&mapping) };
        *current = Some((mapping, (taken + len).next_multiple_of(64)));
        Ok(memory)
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: inside the mapping, `len` bytes, zero or written.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }

    pub fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}
