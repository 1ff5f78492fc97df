//! What the machine can do at most, measured with this build's own instructions: the roofline that kernels are held to.

use std::hint::black_box;

use crate::instruction_set::{InstructionSet, dispatch};
use crate::memory::Memory;
use crate::pool::Pool;
use crate::simd::{Kernel, Simd};

/// Bytes that a thread reads at a time.
const CHUNK: usize = 256 << 10;

/// Seconds that a thread ran, not those in which another process had its core; with several threads, seconds that passed.
pub struct Clock {
    alone: bool,
    start: f64,
}

impl Clock {
    /// A clock that starts now.
    pub fn new(pool: &Pool) -> Clock {
        Clock::start(pool.threads() == 1)
    }

    fn start(alone: bool) -> Clock {
        let mut clock = Clock { alone, start: 0.0 };
        clock.start = clock.seconds();
        clock
    }

    /// Seconds since it started.
    pub fn seconds(&self) -> f64 {
        let clock = if self.alone { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for one time.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9 - self.start
    }
}

struct ReadAll<'a>(&'a [u8]);

impl Kernel for ReadAll<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: inside the slice, a whole number of steps.
        unsafe {
            let mut sums = [S::small_zero(); 4];
            let step = S::LANES * 16;
            for at in (0..self.0.len() / step * step).step_by(step) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let v = S::load_i(self.0.as_ptr().add(at + i * S::LANES * 4));
                    *sum = S::dot_small(*sum, v, v);
                }
                S::prefetch(self.0.as_ptr().wrapping_add(at + 1536));
            }
            let mut lanes = [0.0; 16];
            for sum in sums {
                S::store(lanes.as_mut_ptr(), S::to_f(S::widen(S::splat_i(0), sum)));
            }
            lanes[0]
        }
    }
}

/// Bytes a second that the pool reads from memory, one product per vector: the best of `repetitions` passes over `bytes`.
///
/// # Errors
/// No memory.
pub fn read_bandwidth(pool: &Pool, bytes: usize, repetitions: usize) -> Result<f64, String> {
    let mut memory = Memory::new(bytes).map_err(|error| format!("{bytes} bytes to read: {error}"))?;
    memory.as_mut().fill(1);
    let set = InstructionSet::active();
    let whole = memory.as_slice();
    let best = (0..repetitions.max(1)).map(|_| {
        let clock = Clock::new(pool);
        pool.run(bytes.div_ceil(CHUNK), &|chunk| {
            black_box(dispatch(set, ReadAll(&whole[chunk * CHUNK..bytes.min((chunk + 1) * CHUNK)])));
        });
        bytes as f64 / clock.seconds()
    });
    Ok(best.fold(0.0, f64::max))
}

struct Peak {
    rounds: usize,
    signed: bool,
}

impl Kernel for Peak {
    /// Products taken.
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // Two products may begin in a cycle, and each takes five: fewer sums than that at once would wait for themselves.
        const CHAINS: usize = 10;
        const STEPS: usize = 8;
        // SAFETY: registers, and arrays that stay in the first cache.
        unsafe {
            // Hidden from the compiler, or it would take each product once.
            let numbers: [i32; CHAINS] = black_box(std::array::from_fn(|i| 0x0102_0301 + i as i32));
            let weights: [i32; STEPS] = black_box(std::array::from_fn(|i| 0x0101_0101 << (i % 4)));
            let x: [S::I; CHAINS] = std::array::from_fn(|i| S::splat_i(numbers[i]));
            let mut whole = [S::splat_i(0); CHAINS];
            for _ in 0..self.rounds {
                let weights = black_box(&weights);
                let mut narrow = [S::small_zero(); CHAINS];
                for step in 0..STEPS {
                    let w = S::splat_i(weights[step]);
                    for chain in 0..CHAINS {
                        if self.signed {
                            whole[chain] = S::dot_unsigned(whole[chain], w, x[chain]);
                        } else {
                            narrow[chain] = S::dot_small(narrow[chain], w, x[chain]);
                        }
                    }
                }
                for chain in 0..CHAINS {
                    whole[chain] = S::widen(whole[chain], narrow[chain]);
                }
            }
            black_box(&whole);
            self.rounds * CHAINS * STEPS * S::LANES * 4
        }
    }
}

/// Multiply-adds of 8-bit integers a second that one thread does in registers, the best of `repetitions`.
///
/// Args:
///     signed: of two signed bytes (Q8_0), or of weights below 64 (four to six bits).
pub fn integer_peak(signed: bool, repetitions: usize) -> f64 {
    let set = InstructionSet::active();
    let best = (0..repetitions.max(1)).map(|_| {
        let clock = Clock::start(true);
        let products = dispatch(set, Peak { rounds: black_box(10_000), signed });
        products as f64 / clock.seconds()
    });
    best.fold(0.0, f64::max)
}
