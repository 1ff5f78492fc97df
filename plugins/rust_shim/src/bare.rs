//! An engine by itself: requests one after the other, each started by a line on a pipe and answered by one.
//!
//! Between two lines the process sleeps in `read`, so that two of them can take turns on one machine.

use std::io::{BufRead, Write};

use crate::clock::now_ns;
use crate::failure::{Failure, Result};
use crate::session::Engine;

/// Answers every line of `requests` with one request: `prompt` in, `n_tokens` out, the first of which the prompt gives.
///
/// An answer is a JSON object of `ids` and `token_ns`, when each was on the host. Returns at the end of `requests`.
///
/// # Errors
///
/// Those of the engine; [`Failure::Engine`] where `requests` or `answers` cannot be used.
pub fn answer(
    session: &mut dyn Engine,
    prompt: &[u32],
    n_tokens: usize,
    requests: impl BufRead,
    mut answers: impl Write,
) -> Result<()> {
    let broken = |error: std::io::Error| Failure::Engine(format!("the pipe broke: {error}"));
    for request in requests.lines() {
        request.map_err(broken)?;
        session.reset();
        let first = session.prefill(prompt, n_tokens)?;
        let first_ns = now_ns();
        let (mut ids, mut token_ns) = session.decode(n_tokens.saturating_sub(1))?;
        ids.insert(0, first);
        token_ns.insert(0, first_ns);
        writeln!(answers, "{{\"ids\": {ids:?}, \"token_ns\": {token_ns:?}}}").map_err(broken)?;
        answers.flush().map_err(broken)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::session;

    #[test]
    fn every_line_is_one_whole_request() {
        let mut answers = Vec::new();
        let before = now_ns();
        answer(&mut session(4, 512), &[1, 2], 3, "\n\n".as_bytes(), &mut answers).unwrap();
        let after = now_ns();
        let lines: Vec<_> = str::from_utf8(&answers).unwrap().lines().collect();
        assert_eq!(lines.len(), 2);
        let mut last = before;
        for line in lines {
            let stamps =
                line.strip_prefix("{\"ids\": [3, 6, 12], \"token_ns\": [").unwrap().strip_suffix("]}").unwrap();
            let stamps: Vec<u64> = stamps.split(", ").map(|stamp| stamp.parse().unwrap()).collect();
            assert_eq!(stamps.len(), 3);
            for stamp in stamps {
                assert!(last <= stamp && stamp <= after);
                last = stamp;
            }
        }
    }

    #[test]
    fn what_the_engine_refuses_ends_it() {
        let mut answers = Vec::new();
        let failed = answer(&mut session(4, 512), &[1, 2], 9, "\n".as_bytes(), &mut answers);
        assert!(matches!(failed, Err(Failure::ContextOverflow(_))));
        assert!(answers.is_empty());
    }
}
