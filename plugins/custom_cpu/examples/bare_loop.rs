//! The engine without Python: `cargo run --release --example bare_loop -- FILE N_TOKENS TOKEN...`
//!
//! Loads a model, then answers every line of stdin with one request on stdout: the given token ids in, `N_TOKENS` out,
//! greedily, with a stamp each (see `enginecmp_shim::bare`). Threads come from `OMP_NUM_THREADS`, 1 without it.

use std::error::Error;
use std::io::{stdin, stdout};
use std::path::Path;

use enginecmp_custom_cpu::{Options, load};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, n_tokens, prompt @ ..] = arguments.as_slice() else { return Err("FILE N_TOKENS TOKEN...".into()) };
    let n_tokens = n_tokens.parse::<usize>()?;
    let prompt: Vec<u32> = prompt.iter().map(|id| id.parse()).collect::<Result<_, _>>()?;
    let threads = std::env::var("OMP_NUM_THREADS").map_or(Ok(1), |count| count.parse())?;
    let options = Options { threads, context_tokens: prompt.len() + n_tokens, ..Options::default() };
    let mut session = load(Path::new(path), &options)?;
    enginecmp_shim::bare::answer(&mut session, &prompt, n_tokens, stdin().lock(), stdout())?;
    Ok(())
}
