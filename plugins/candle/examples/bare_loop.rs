//! The engine without Python: `cargo run --release --example bare_loop -- MODEL N_TOKENS TOKEN...`
//!
//! Loads a GGUF file, then answers every line of stdin with one request on stdout: the given token ids in, `N_TOKENS`
//! out, greedily, with a stamp each (see `enginecmp_shim::bare`). Threads come from `CANDLE_NUM_THREADS` and
//! `RAYON_NUM_THREADS`.

use std::error::Error;
use std::io::{stdin, stdout};
use std::path::Path;

use enginecmp_candle::{Options, load};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, n_tokens, prompt @ ..] = arguments.as_slice() else {
        return Err("expected MODEL N_TOKENS TOKEN...".into());
    };
    let n_tokens: usize = n_tokens.parse()?;
    let prompt: Vec<u32> = prompt.iter().map(|token| token.parse()).collect::<Result<_, _>>()?;
    let options = Options { device: "cpu".to_owned(), context_tokens: prompt.len() + n_tokens, prompt_chunk: 512 };
    let mut session = load(Path::new(path), &options)?;
    enginecmp_shim::bare::answer(&mut session, &prompt, n_tokens, stdin().lock(), stdout().lock())?;
    Ok(())
}
