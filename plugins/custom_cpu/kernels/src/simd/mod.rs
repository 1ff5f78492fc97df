//! Vectors of one instruction set behind one trait, so that each kernel is written once.
//!
//! A vector holds `LANES` lanes of 32 bits, one weight row a lane: sums over columns never cross lanes. All methods are
//! inlined into a function that has the instruction set's features (`dispatch`); called anywhere else they are unsound.

#[cfg(target_arch = "x86_64")]
pub mod avx2;
#[cfg(target_arch = "x86_64")]
pub mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;
pub mod portable;

/// What the kernels need of an instruction set.
///
/// # Safety
/// Every method: the CPU has the instruction set, and pointers are valid for `LANES` lanes of their element.
pub unsafe trait Simd: Copy + 'static {
    /// Lanes of 32 bits in a vector.
    const LANES: usize;
    /// What packing adds to signed 8-bit weights: 128 where the product wants them unsigned, else 0.
    const BIAS: i32;
    /// Activation rows of one register tile.
    const ACTS: usize;
    /// Whether a product and a sum in one instruction are to be had outside this trait too (`f32::mul_add`).
    const FMA: bool;
    /// Words of 32 bits that hold four activations for `dot_signed`: the four, or their sign masks and magnitudes.
    const WORDS: usize;
    /// `LANES` × i32, or as many groups of four bytes.
    type I: Copy;
    /// Four activations as `dot_signed` wants them, in every lane.
    type X: Copy;
    /// `LANES` × f32.
    type F: Copy;
    /// Sums of products of weights below 64, before they are widened to `I`.
    type S: Copy;

    unsafe fn load_i(p: *const u8) -> Self::I;
    unsafe fn store_i(p: *mut u8, v: Self::I);
    unsafe fn splat_i(v: i32) -> Self::I;
    /// `WORDS` words, in every lane.
    unsafe fn load_x(p: *const i32) -> Self::X;
    /// acc + Σ over a lane's four bytes of w · x, where the caller starts acc at what `activations` says; |x| ≤ 127.
    unsafe fn dot_signed(acc: Self::I, w: Self::I, x: Self::X) -> Self::I;
    /// acc + Σ over a lane's four bytes of a · b, `a` unsigned, `b` signed, two neighbouring products within 16 bits: the
    /// least that four products cost.
    unsafe fn dot_unsigned(acc: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// The sum itself, behind a wall: products are taken in the order written, or the compiler would gather all of a row's
    /// and keep more weights at hand than there are registers.
    #[inline(always)]
    unsafe fn in_order(sum: Self::I) -> Self::I {
        sum
    }
    #[inline(always)]
    unsafe fn small_in_order(sum: Self::S) -> Self::S {
        sum
    }
    unsafe fn small_zero() -> Self::S;
    /// acc + Σ w·x for weights below 16 (at most 8 such sums fit), below 32 (4) or below 64 (2).
    unsafe fn dot_small(acc: Self::S, w: Self::I, x: Self::I) -> Self::S;
    unsafe fn widen(acc: Self::I, s: Self::S) -> Self::I;
    unsafe fn low_nibbles(v: Self::I) -> Self::I;
    unsafe fn high_nibbles(v: Self::I) -> Self::I;
    /// Bit `bit` of each byte, moved to bit 4.
    unsafe fn bit_to_16(v: Self::I, bit: usize) -> Self::I;
    /// Bits `2 pair` and `2 pair + 1` of each byte, moved to bits 4 and 5.
    unsafe fn pair_to_16(v: Self::I, pair: usize) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;

    unsafe fn to_f(v: Self::I) -> Self::F;
    unsafe fn splat(v: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    unsafe fn load_u8(p: *const u8) -> Self::F;
    unsafe fn load_i8(p: *const i8) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// e^v as `math::exp` has it.
    unsafe fn exp(v: Self::F) -> Self::F;
    /// a · b + c
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Writes 16 values times `inverse`, rounded to the nearest integer (ties to even) within ±127, and returns their sum.
    #[inline(always)]
    unsafe fn quantize_16(p: *const f32, inverse: f32, out: *mut i8) -> i32 {
        // SAFETY: the caller's.
        let (values, out) = unsafe { (&*p.cast::<[f32; 16]>(), &mut *out.cast::<[i8; 16]>()) };
        quantize(values, inverse, out)
    }
    /// Writes a block of activations as `load_x` reads them where `WORDS` is 2, four columns `step` words apart, and returns
    /// what a product starts with.
    unsafe fn split(_: &[i8; 32], _: *mut u32, _: usize) -> i32 {
        unreachable!("values are their own operands")
    }
    /// Writes `words` words of each of the first `LANES` rows, the rows' first words first, every one xor `flip`.
    #[inline(always)]
    unsafe fn interleave(rows: &[*const u8; 16], words: usize, flip: u32, out: *mut u8) {
        for word in 0..words {
            for lane in 0..Self::LANES {
                // SAFETY: the caller's.
                unsafe {
                    let value = rows[lane].cast::<u32>().add(word).read_unaligned();
                    out.cast::<u32>().add(word * Self::LANES + lane).write_unaligned(value ^ flip);
                }
            }
        }
    }
    /// Asks for the cache line at `p`, which need not be readable.
    unsafe fn prefetch(p: *const u8);
}

/// `quantize_16` in plain Rust.
#[inline(always)]
pub fn quantize(values: &[f32; 16], inverse: f32, out: &mut [i8; 16]) -> i32 {
    // 1.5 · 2^23: adding it leaves the nearest integer, ties to even, in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let mut sum = 0;
    for (value, out) in values.iter().zip(out) {
        let rounded = (value * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
        // Numbers are in range; this holds for what is no number too.
        let quant = rounded.clamp(-127, 127);
        *out = quant as i8;
        sum += quant;
    }
    sum
}

/// Work that is compiled once for each instruction set.
pub trait Kernel {
    type Output;
    /// # Safety
    /// Only from `dispatch`; implementations are `#[inline(always)]`, and so is all that they call.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}
