//! What can go wrong, by what a caller can do about it, and the wall that panics do not pass.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One line for the user, without the engine's name in front.
#[derive(Debug)]
pub enum Failure {
    /// The file is well-formed, but not for this engine.
    Unsupported(String),
    /// More tokens than the session's context holds.
    ContextOverflow(String),
    /// Memory that the system does not give.
    OutOfMemory(String),
    /// Everything else: wrong use, an error or a panic of the library.
    Engine(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unsupported(line) | Self::ContextOverflow(line) | Self::OutOfMemory(line) | Self::Engine(line)) =
            self;
        f.write_str(line)
    }
}

impl std::error::Error for Failure {}

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        // With RUST_BACKTRACE set, Candle appends a trace to its message: the first line says what happened.
        let text = error.to_string();
        let line = text.lines().next().unwrap_or("an error without a message");
        let line = format!("Candle failed: {line}");
        if line.to_lowercase().contains("out_of_memory") || line.to_lowercase().contains("out of memory") {
            return Self::OutOfMemory(line);
        }
        Self::Engine(line)
    }
}

pub type Result<T> = std::result::Result<T, Failure>;

/// Runs `work` and turns a panic into a [`Failure`].
///
/// `doing` completes "panicked while ...". Where it panicked is on stderr, written by Rust's own hook.
pub fn guarded<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // A session may be half-way through a token after a panic. Its next request starts with a reset, which does not
    // read what the cache holds.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = message_of(payload.as_ref());
        Err(Failure::Engine(format!("panicked while {doing}: {text}")))
    })
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    text.lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_line_with_its_message() {
        let failed = guarded("testing", || -> Result<()> { panic!("index {}\nout of bounds", 7) });
        assert_eq!(failed.unwrap_err().to_string(), "panicked while testing: index 7 out of bounds");
        let failed = guarded("testing", || -> Result<()> { std::panic::panic_any(7_u8) });
        assert_eq!(failed.unwrap_err().to_string(), "panicked while testing: no message");
    }

    #[test]
    fn results_pass_unchanged() {
        assert_eq!(guarded("testing", || Ok(3)).unwrap(), 3);
        let failed = guarded("testing", || -> Result<()> { Err(Failure::ContextOverflow("full".to_owned())) });
        assert!(matches!(failed, Err(Failure::ContextOverflow(line)) if line == "full"));
    }
}
