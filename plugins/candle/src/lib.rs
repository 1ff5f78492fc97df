//! Candle as an engine of enginecmp: a GGUF file in, token ids and logits out.
//!
//! The model is written here over Candle's operations, because the ones of candle-transformers return logits of the
//! last position only. `session` is the whole surface; requests, stamps and the Python class are enginecmp-shim's,
//! which Burn shares. Without the feature `python` the crate is a plain library, which is what
//! `examples/bare_loop.rs` measures.

#[cfg(feature = "accelerate")]
extern crate accelerate_src;
#[cfg(feature = "mkl")]
extern crate intel_mkl_src;

mod config;
mod failure;
mod metadata;
mod model;
#[cfg(feature = "python")]
mod python;
mod rope;
mod session;
mod weights;

pub use session::{Loaded, Options, Session, load};
