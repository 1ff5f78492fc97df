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
    /// Memory that the system or the device does not give.
    OutOfMemory(String),
    /// Everything else: wrong use, an error or a panic of the library.
    Engine(String),
}

impl Failure {
    /// What a library said, told apart by whether it ran out of memory.
    #[must_use]
    pub fn of_library(line: String) -> Self {
        let lower = line.to_lowercase();
        if lower.contains("out_of_memory") || lower.contains("out of memory") {
            return Self::OutOfMemory(line);
        }
        Self::Engine(line)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Unsupported(line) | Self::ContextOverflow(line) | Self::OutOfMemory(line) | Self::Engine(line)) =
            self;
        f.write_str(line)
    }
}

impl std::error::Error for Failure {}

pub type Result<T> = std::result::Result<T, Failure>;

/// The message of a file that this engine does not load.
#[must_use]
pub fn refuse(expected: &str, got: &str) -> Failure {
    Failure::Unsupported(format!("expected {expected}, got {got}; leave this engine out with --engines"))
}

/// Runs `work` and turns a panic, which is how some libraries report an error, into a [`Failure`].
///
/// `doing` completes "panicked while ...". Where it panicked is on stderr, written by Rust's own hook.
///
/// # Errors
///
/// Those of `work`, and its panic.
pub fn guarded<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // A session may be half-way through a token after a panic. Its next request starts with a reset, after which a
    // model reads nothing of what its cache held.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        Err(Failure::of_library(format!("panicked while {doing}: {}", message_of(payload.as_ref()))))
    })
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_line_with_its_message() {
        let failed = guarded("testing", || -> Result<()> { panic!("=== index {}\n\n  out of bounds", 7) });
        assert_eq!(failed.unwrap_err().to_string(), "panicked while testing: === index 7 out of bounds");
        let failed = guarded("testing", || -> Result<()> { std::panic::panic_any(7_u8) });
        assert_eq!(failed.unwrap_err().to_string(), "panicked while testing: no message");
    }

    #[test]
    fn a_device_without_memory_is_told_apart() {
        let failed = guarded("testing", || -> Result<()> { panic!("CUDA_ERROR_OUT_OF_MEMORY") });
        assert!(matches!(failed, Err(Failure::OutOfMemory(_))));
        assert!(matches!(Failure::of_library("Out of memory".to_owned()), Failure::OutOfMemory(_)));
        assert!(matches!(Failure::of_library("out of bounds".to_owned()), Failure::Engine(_)));
    }

    #[test]
    fn results_pass_unchanged() {
        assert_eq!(guarded("testing", || Ok(3)).unwrap(), 3);
        let failed = guarded("testing", || -> Result<()> { Err(Failure::ContextOverflow("full".to_owned())) });
        assert!(matches!(failed, Err(Failure::ContextOverflow(line)) if line == "full"));
    }
}
