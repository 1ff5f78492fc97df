//! An engine of enginecmp for CPUs: a GGUF file in, token ids and logits out, with kernels of its own.
//!
//! `session` is the whole surface. A file becomes a `model` (by `file`, `metadata`, `config`, `weights`), which `graph`
//! runs some tokens at a time; `batch` decides which tokens, with their keys and values in `kv`, what prompts share in
//! `prefix`, guesses from `speculate`. The kernels are a crate of their own. Without the feature `python` the crate is a
//! plain library, which is what `examples/bare_loop.rs` measures.

mod batch;
mod config;
#[cfg(feature = "python")]
mod elements;
mod file;
mod graph;
mod kv;
#[cfg(feature = "python")]
mod layer;
mod metadata;
mod model;
mod prefix;
#[cfg(any(feature = "python", test))]
mod product;
mod profile;
#[cfg(feature = "python")]
mod python;
mod rope;
mod rows;
mod sample;
mod session;
mod shift;
mod speculate;
mod weights;

pub use batch::Decoding;
pub use cpu_kernels::KvType;
pub use sample::{Sampler, Strategy};
pub use session::{Options, Session, load};
