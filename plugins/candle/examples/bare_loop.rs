//! The engine without Python: `cargo run --release --example bare_loop -- MODEL N_TOKENS REPETITIONS TOKEN...`
//!
//! Prefills the given token ids, generates greedily and prints JSON: tokens per second of the generated tokens after
//! the first and seconds of the prompt, one of each per repetition, after one repetition to warm up. `MODEL` is a GGUF
//! file; threads come from `CANDLE_NUM_THREADS` and `RAYON_NUM_THREADS`.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use enginecmp_candle::{Options, Session};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, n_tokens, repetitions, prompt @ ..] = arguments.as_slice() else {
        return Err("expected MODEL N_TOKENS REPETITIONS TOKEN...".into());
    };
    let (n_tokens, repetitions): (usize, usize) = (n_tokens.parse()?, repetitions.parse()?);
    let prompt: Vec<u32> = prompt.iter().map(|token| token.parse()).collect::<Result<_, _>>()?;
    let options = Options { device: "cpu".to_owned(), context_tokens: prompt.len() + n_tokens, prompt_chunk: 512 };
    let mut session = Session::load(Path::new(path), &options)?;

    let (mut rates, mut prompts) = (Vec::new(), Vec::new());
    for repetition in 0..=repetitions {
        session.reset();
        let start = Instant::now();
        session.prefill(&prompt, n_tokens)?;
        let prefilled = Instant::now();
        session.decode(n_tokens - 1)?;
        let seconds = prefilled.elapsed().as_secs_f64();
        if repetition > 0 {
            rates.push((n_tokens - 1) as f64 / seconds);
            prompts.push((prefilled - start).as_secs_f64());
        }
    }
    println!("{{\"decode_tokens_per_second\": {rates:?}, \"prefill_seconds\": {prompts:?}}}");
    Ok(())
}
