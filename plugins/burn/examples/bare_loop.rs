//! The engine without Python: `cargo run --release --example bare_loop -- N_TOKENS REPETITIONS TOKEN...`
//!
//! Prefills the given token ids, generates greedily and prints JSON: tokens per second of the generated tokens after
//! the first and seconds of the prompt, one of each per repetition, after one repetition to warm up. The model has the
//! shapes of SmolLM2-135M and random float32 weights, because only Python reads model files here, and neither products
//! nor loops take longer for other values. Threads come from `RAYON_NUM_THREADS`.

use std::error::Error;
use std::time::Instant;

use enginecmp_burn::{Config, Options, Result, RopeConfig, Session, Source};

const LAYERS: usize = 30;
const WIDTH: usize = 576;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const FEED_FORWARD: usize = 1536;
const VOCABULARY: usize = 49152;

/// Weights without a file.
struct Random {
    state: u32,
}

impl Source for Random {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let part = name.strip_prefix("blk.").map_or(name, |rest| rest.split_once('.').map_or(rest, |(_, part)| part));
        Some(match part {
            "token_embd.weight" => vec![VOCABULARY, WIDTH],
            "output_norm.weight" | "attn_norm.weight" | "ffn_norm.weight" => vec![WIDTH],
            "attn_q.weight" | "attn_output.weight" => vec![WIDTH, WIDTH],
            "attn_k.weight" | "attn_v.weight" => vec![KV_HEADS * HEAD_DIM, WIDTH],
            "ffn_gate.weight" | "ffn_up.weight" => vec![FEED_FORWARD, WIDTH],
            "ffn_down.weight" => vec![WIDTH, FEED_FORWARD],
            _ => return None,
        })
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        let length = self.shape(name).expect("only tensors with a shape are read").into_iter().product();
        Ok(std::iter::repeat_with(|| {
            // Knuth's linear congruential generator; the upper bits, as something in [-0.05, 0.05).
            self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(self.state >> 8) / f64::from(1 << 24) - 0.5) as f32 * 0.1
        })
        .take(length)
        .collect())
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [n_tokens, repetitions, prompt @ ..] = arguments.as_slice() else {
        return Err("expected N_TOKENS REPETITIONS TOKEN...".into());
    };
    let (n_tokens, repetitions): (usize, usize) = (n_tokens.parse()?, repetitions.parse()?);
    let prompt: Vec<u32> = prompt.iter().map(|token| token.parse()).collect::<std::result::Result<_, _>>()?;
    let config = Config {
        layers: LAYERS,
        width: WIDTH,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        epsilon: 1e-5,
        rope: RopeConfig {
            frequencies: (0..HEAD_DIM / 2).map(|i| 100_000_f64.powf(-2.0 * i as f64 / HEAD_DIM as f64)).collect(),
            interleaved: true,
            magnitude: 1.0,
        },
        fused_attention: true,
    };
    let options = Options {
        device: "cpu".to_owned(),
        context_tokens: prompt.len() + n_tokens,
        limit: String::new(),
        prompt_chunk: 512,
        unread: Vec::new(),
    };
    let mut session = Session::load(config, &mut Random { state: 1 }, options)?;

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
