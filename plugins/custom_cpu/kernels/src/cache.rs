//! Pages of the key-value cache of one layer: how positions lie in a page.
//!
//! Keys lie transposed in strips of 16 positions, (head_dim, 16), so that a vector holds one dimension of many positions;
//! values lie (position, head_dim), so that it holds many dimensions of one. Neither needs sums across lanes.

use crate::float16::{f16_to_f32, f32_to_f16};

/// Positions of a page.
pub const PAGE_TOKENS: usize = 32;

/// Positions of a strip of keys.
pub(crate) const STRIP: usize = 16;

/// Dimensions that share a scale in an 8-bit cache.
pub(crate) const SCALED: usize = 32;

/// How the cache stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum KvType {
    F32,
    F16,
    Q8_0,
}

/// The pages of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub kind: KvType,
    pub kv_heads: usize,
    /// Any number.
    pub head_dim: usize,
}

/// Byte offsets inside a head's part of a page; keys lie at 0.
pub(crate) struct HeadPlanes {
    pub key_scales: usize,
    pub values: usize,
    pub value_scales: usize,
    pub bytes: usize,
}

impl KvLayout {
    /// Dimensions of a value row, padded to whole vectors.
    pub(crate) fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(16)
    }

    pub(crate) fn element(&self) -> usize {
        match self.kind {
            KvType::F32 => 4,
            KvType::F16 => 2,
            KvType::Q8_0 => 1,
        }
    }

    /// Scales of one position and head.
    pub(crate) fn scales(&self) -> usize {
        if self.kind == KvType::Q8_0 { self.head_dim.div_ceil(SCALED) } else { 0 }
    }

    pub(crate) fn planes(&self) -> HeadPlanes {
        let keys = PAGE_TOKENS * self.head_dim * self.element();
        let scales = PAGE_TOKENS * self.scales() * 2;
        let key_scales = keys.next_multiple_of(64);
        let values = (key_scales + scales).next_multiple_of(64);
        let value_scales = (values + PAGE_TOKENS * self.padded() * self.element()).next_multiple_of(64);
        HeadPlanes { key_scales, values, value_scales, bytes: (value_scales + scales).next_multiple_of(64) }
    }

    /// Bytes of a page: keys and values of `PAGE_TOKENS` positions, all heads, one layer. Pages need no clearing.
    pub fn page_bytes(&self) -> usize {
        self.kv_heads * self.planes().bytes
    }

    /// Stores keys and values of one position, `kv_heads · head_dim` each; keys are already turned.
    ///
    /// # Safety
    /// `page` holds `page_bytes()` bytes, aligned to 4, that nobody else reads or writes meanwhile.
    ///
    /// # Panics
    /// Where the slot or a length is not the layout's.
    pub unsafe fn store(&self, page: *mut u8, slot: usize, keys: &[f32], values: &[f32]) {
        // SAFETY: the caller's, here and below.
        unsafe { self.store_key(page, slot, keys) };
        self.check(slot, values.len());
        let planes = self.planes();
        for (head, row) in values.chunks_exact(self.head_dim).enumerate() {
            let at = page.wrapping_add(head * planes.bytes);
            let scales = at.wrapping_add(planes.value_scales + slot * self.scales() * 2);
            unsafe { self.put(at.wrapping_add(planes.values), slot * self.padded(), 1, scales, 1, row) };
        }
    }

    /// Stores the keys of one position (a context shift turns them again).
    ///
    /// # Safety
    /// As `store`.
    ///
    /// # Panics
    /// As `store`.
    pub unsafe fn store_key(&self, page: *mut u8, slot: usize, keys: &[f32]) {
        self.check(slot, keys.len());
        let planes = self.planes();
        for (head, row) in keys.chunks_exact(self.head_dim).enumerate() {
            let at = page.wrapping_add(head * planes.bytes);
            let scales = at.wrapping_add(planes.key_scales + (slot / STRIP * self.scales() * STRIP + slot % STRIP) * 2);
            unsafe { self.put(at, self.key_start(slot), STRIP, scales, STRIP, row) };
        }
    }

    /// Reads the keys of one position.
    ///
    /// # Safety
    /// `page` holds `page_bytes()` bytes, aligned to 4, and nobody writes this slot meanwhile.
    ///
    /// # Panics
    /// As `store`.
    pub unsafe fn load_key(&self, page: *const u8, slot: usize, keys: &mut [f32]) {
        self.check(slot, keys.len());
        let planes = self.planes();
        for (head, row) in keys.chunks_exact_mut(self.head_dim).enumerate() {
            let at = page.wrapping_add(head * planes.bytes);
            let scales = at.wrapping_add(planes.key_scales + (slot / STRIP * self.scales() * STRIP + slot % STRIP) * 2);
            unsafe { self.get(at, self.key_start(slot), STRIP, scales, STRIP, row) };
        }
    }

    /// Reads the values of one position.
    ///
    /// # Safety
    /// As `load_key`.
    ///
    /// # Panics
    /// As `store`.
    pub unsafe fn load_value(&self, page: *const u8, slot: usize, values: &mut [f32]) {
        self.check(slot, values.len());
        let planes = self.planes();
        for (head, row) in values.chunks_exact_mut(self.head_dim).enumerate() {
            let at = page.wrapping_add(head * planes.bytes);
            let scales = at.wrapping_add(planes.value_scales + slot * self.scales() * 2);
            unsafe { self.get(at.wrapping_add(planes.values), slot * self.padded(), 1, scales, 1, row) };
        }
    }

    fn check(&self, slot: usize, len: usize) {
        assert!(slot < PAGE_TOKENS, "expected a slot below {PAGE_TOKENS}, got {slot}");
        let expected = self.kv_heads * self.head_dim;
        assert!(
            len == expected,
            "expected {} heads of {} ({expected} values), got {len}",
            self.kv_heads,
            self.head_dim
        );
    }

    /// Where a position's first key lies, in elements.
    fn key_start(&self, slot: usize) -> usize {
        slot / STRIP * self.head_dim * STRIP + slot % STRIP
    }

    /// Writes a row's values `stride` elements apart, and its scales.
    unsafe fn put(&self, to: *mut u8, start: usize, stride: usize, scales: *mut u8, scale_stride: usize, row: &[f32]) {
        // SAFETY: inside the page.
        unsafe {
            match self.kind {
                KvType::F32 => {
                    let to = to.cast::<f32>().add(start);
                    row.iter().enumerate().for_each(|(i, value)| to.add(i * stride).write(*value));
                }
                KvType::F16 => {
                    let to = to.cast::<u16>().add(start);
                    row.iter().enumerate().for_each(|(i, value)| to.add(i * stride).write(f32_to_f16(*value)));
                }
                KvType::Q8_0 => {
                    let (to, scales) = (to.cast::<i8>().add(start), scales.cast::<u16>());
                    for (block, values) in row.chunks(SCALED).enumerate() {
                        let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                        let scale = f32_to_f16(largest / 127.0);
                        scales.add(block * scale_stride).write(scale);
                        let scale = f16_to_f32(scale);
                        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                        for (i, value) in values.iter().enumerate() {
                            let quant = (value * inverse).round().clamp(-127.0, 127.0) as i8;
                            to.add((block * SCALED + i) * stride).write(quant);
                        }
                    }
                }
            }
        }
    }

    unsafe fn get(
        &self,
        from: *const u8,
        start: usize,
        stride: usize,
        scales: *const u8,
        scale_stride: usize,
        row: &mut [f32],
    ) {
        // SAFETY: inside the page.
        unsafe {
            for (i, value) in row.iter_mut().enumerate() {
                let at = start + i * stride;
                *value = match self.kind {
                    KvType::F32 => from.cast::<f32>().add(at).read(),
                    KvType::F16 => f16_to_f32(from.cast::<u16>().add(at).read()),
                    KvType::Q8_0 => {
                        let scale = scales.cast::<u16>().add(i / SCALED * scale_stride).read();
                        f16_to_f32(scale) * f32::from(from.cast::<i8>().add(at).read())
                    }
                };
            }
        }
    }
}
