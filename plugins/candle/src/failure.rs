//! What Candle reports, as one line for the user.

use enginecmp_shim::Failure;

/// For `map_err`: operations on tensors return Candle's own errors, reading a file also refuses.
pub fn failed(error: candle_core::Error) -> Failure {
    // With RUST_BACKTRACE set, Candle appends a trace to its message: the first line says what happened.
    let text = error.to_string();
    let line = text.lines().next().unwrap_or("an error without a message");
    Failure::of_library(format!("Candle failed: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_line_is_told() {
        let error = candle_core::Error::Msg("shapes differ\n   0: candle_core::backtrace".to_owned());
        assert_eq!(failed(error).to_string(), "Candle failed: shapes differ");
        let error = candle_core::Error::Msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY)".to_owned());
        assert!(matches!(failed(error), Failure::OutOfMemory(_)));
    }
}
