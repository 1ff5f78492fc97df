//! Burn as an engine of enginecmp: tensors in, token ids and logits out.
//!
//! The model is written here over Burn's tensors: Burn itself brings layers, and neither language models nor a reader
//! of GGUF files. `session` is the whole surface; `python` hands it to Python, which reads the file. Without the
//! feature `python` the crate is a plain library, which is what `examples/bare_loop.rs` measures.

mod clock;
mod failure;
mod model;
#[cfg(feature = "python")]
mod python;
mod rope;
mod session;
mod weights;

pub use failure::{Failure, Result};
pub use model::Config;
pub use rope::RopeConfig;
pub use session::{Options, Session};
pub use weights::Source;
