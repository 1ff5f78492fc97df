//! Which instruction set the kernels use: the best the CPU has, unless a lower one is asked for.

use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::portable::Portable;
use crate::simd::{Kernel, Simd};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx2::Avx2Vnni, avx512::Avx512Vnni};

/// The environment variable that names a lower instruction set than the CPU's best.
pub const VARIABLE: &str = "CUSTOM_CPU_INSTRUCTION_SET";

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum InstructionSet {
    Portable = 1,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

/// 0 until first asked for.
static ACTIVE: AtomicU8 = AtomicU8::new(0);

impl InstructionSet {
    /// All that this build knows, the plainest first.
    pub const ALL: &[InstructionSet] = &[
        InstructionSet::Portable,
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2Vnni,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512Vnni,
    ];

    /// Its name: `portable`, `neon`, `avx2`, `avx2vnni`, `avx512vnni`.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Portable => "portable",
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Vnni => "avx2vnni",
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => "avx512vnni",
        }
    }

    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        match self {
            InstructionSet::Portable => true,
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => true,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Vnni => InstructionSet::Avx2.available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => {
                InstructionSet::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
        }
    }

    /// The one that new matrices are packed for and the small layers run on.
    ///
    /// # Panics
    /// Where the environment variable names one that is unknown or not to be had; `select` reports that as an error.
    pub fn active() -> InstructionSet {
        let number = ACTIVE.load(Ordering::Relaxed);
        match Self::ALL.iter().find(|set| **set as u8 == number) {
            Some(set) => *set,
            None => Self::select(std::env::var(VARIABLE).ok().as_deref()).unwrap_or_else(|message| panic!("{message}")),
        }
    }

    /// Makes the named one the active one, or the best that the CPU has. Matrices keep what they were packed for.
    ///
    /// # Errors
    /// An unknown name, or one that this CPU doesn't have.
    pub fn select(name: Option<&str>) -> Result<InstructionSet, String> {
        let had: Vec<InstructionSet> = Self::ALL.iter().copied().filter(|set| set.available()).collect();
        let chosen = match name {
            None => *had.last().expect("the portable one"),
            Some(name) => *had.iter().find(|set| set.name() == name).ok_or_else(|| {
                let names: Vec<&str> = had.iter().map(|set| set.name()).collect();
                format!("expected an instruction set that this CPU has ({}), got {name:?}", names.join(", "))
            })?,
        };
        ACTIVE.store(chosen as u8, Ordering::Relaxed);
        Ok(chosen)
    }

    /// What its packed matrices and prepared activations look like.
    pub(crate) fn shape(self) -> Shape {
        match self {
            InstructionSet::Portable => Shape::of::<Portable>(),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => Shape::of::<Neon>(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Shape::of::<Avx2>(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Vnni => Shape::of::<Avx2Vnni>(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => Shape::of::<Avx512Vnni>(),
        }
    }
}

/// The constants of `Simd` that memory layouts depend on.
pub(crate) struct Shape {
    pub lanes: usize,
    pub bias: i32,
    pub acts: usize,
    pub words: usize,
}

impl Shape {
    fn of<S: Simd>() -> Shape {
        Shape { lanes: S::LANES, bias: S::BIAS, acts: S::ACTS, words: S::WORDS }
    }
}

/// The active instruction set's name.
pub fn instruction_set() -> &'static str {
    InstructionSet::active().name()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn on_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here, and `dispatch` found them in the CPU.
    unsafe { kernel.run::<Avx2>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn on_avx2_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx2Vnni>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn on_avx512_vnni<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx512Vnni>() }
}

/// Runs a kernel on an instruction set, which the CPU has: `select` and `Matrix` let no other through.
#[inline]
pub(crate) fn dispatch<K: Kernel>(set: InstructionSet, kernel: K) -> K::Output {
    // SAFETY: as said above.
    unsafe {
        match set {
            InstructionSet::Portable => kernel.run::<Portable>(),
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => kernel.run::<Neon>(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => on_avx2(kernel),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2Vnni => on_avx2_vnni(kernel),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Vnni => on_avx512_vnni(kernel),
        }
    }
}
