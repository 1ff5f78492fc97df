//! What the Rust engines of enginecmp share, so that both are driven, timed and refused in the same way.
//!
//! An engine writes a [`Model`]; [`Session`] runs requests through it, and the feature `python` hands sessions to
//! Python. `bare` answers requests on a pipe, which is what an engine by itself is measured with.

pub mod bare;
mod clock;
mod failure;
#[cfg(feature = "python")]
pub mod python;
mod session;

pub use clock::now_ns;
pub use failure::{Failure, Result, guarded, refuse};
pub use session::{Engine, Limits, Metrics, Model, Session, Stamped, reserve_cache};
