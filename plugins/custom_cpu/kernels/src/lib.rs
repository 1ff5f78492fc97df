//! Kernels of the in-house CPU engine: products with packed weights, attention over a paged cache, and the small layers.
//!
//! Every kernel is written once over `simd::Simd` and compiled for each instruction set; `InstructionSet::active` says which
//! one runs. Results don't depend on the number of threads, nor a row's on the rows beside it.

// Register tiles are written as loops over fixed arrays by index: that is what the compiler unrolls.
#![allow(clippy::needless_range_loop)]

mod activations;
mod attention;
mod cache;
mod float16;
mod format;
mod instruction_set;
mod layers;
mod layout;
mod limits;
mod math;
mod matmul;
mod matrix;
mod memory;
mod pack;
mod pool;
mod product;
mod shared;
mod simd;

pub use activations::quantize_rows;
pub use attention::{Span, attention};
pub use cache::{KvLayout, KvType, PAGE_TOKENS};
pub use float16::{bf16_to_f32, f16_to_f32, f32_to_f16};
pub use format::{Format, dequantize};
pub use instruction_set::{InstructionSet, VARIABLE, instruction_set};
pub use layers::{add, argmax, gelu, layer_norm, rms_norm, silu_mul, softmax};
pub use limits::{Clock, integer_peak, read_bandwidth};
pub use matmul::{matmul, matmul_many};
pub use matrix::Matrix;
pub use pool::Pool;
