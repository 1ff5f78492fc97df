//! Burn as an engine of enginecmp: tensors in, token ids and logits out.
//!
//! The model is written here over Burn's tensors: Burn itself brings layers, and neither language models nor a reader
//! of GGUF files. `session` is the whole surface; requests, stamps and the Python class are enginecmp-shim's, which
//! Candle shares, and Python reads the file. Without the feature `python` the crate is a plain library, which is what
//! `examples/bare_loop.rs` measures.

mod model;
#[cfg(feature = "python")]
mod python;
mod rope;
mod session;
mod weights;

pub use model::Config;
pub use rope::RopeConfig;
pub use session::{Loaded, Options, Session, load};
pub use weights::Source;
