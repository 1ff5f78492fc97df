//! The engine without Python: `cargo run --release --example bare_loop -- FOLDER N_TOKENS TOKEN...`
//!
//! Loads a model, then answers every line of stdin with one request on stdout: the given token ids in, `N_TOKENS` out,
//! greedily, with a stamp each (see `enginecmp_shim::bare`). Only Python reads GGUF files here, so `FOLDER` holds what
//! it read (bench/burn_model.py): `weights.f32`, values of all tensors one after the other, and `model.txt`, a line
//! for each field of `Config` and `tensor NAME EXTENT...` for each tensor in the same order. Threads come from
//! `RAYON_NUM_THREADS`.

use std::collections::HashMap;
use std::error::Error;
use std::fs::{File, read_to_string};
use std::io::{Read, Seek, SeekFrom, stdin, stdout};
use std::path::Path;
use std::str::FromStr;

use enginecmp_burn::{Config, Options, RopeConfig, Source, load};
use enginecmp_shim::{Failure, Limits};

/// Weights and constants as Python wrote them.
struct Folder {
    fields: HashMap<String, Vec<String>>,
    /// Offset in `weights`, in values, and extents.
    tensors: HashMap<String, (usize, Vec<usize>)>,
    weights: File,
}

impl Folder {
    fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let (mut fields, mut tensors, mut offset) = (HashMap::new(), HashMap::new(), 0);
        for line in read_to_string(path.join("model.txt"))?.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            let name = words.next().ok_or("model.txt has an empty line")?;
            if name == "tensor" {
                let name = words.next().ok_or("model.txt has a tensor without a name")?;
                let shape: Vec<usize> = words.map(|extent| extent.parse()).collect::<Result<_, _>>()?;
                let length = shape.iter().product::<usize>();
                tensors.insert(name, (offset, shape));
                offset += length;
            } else {
                fields.insert(name, words.collect());
            }
        }
        Ok(Self { fields, tensors, weights: File::open(path.join("weights.f32"))? })
    }

    fn all<T: FromStr<Err: Error + 'static>>(&self, name: &str) -> Result<Vec<T>, Box<dyn Error>> {
        let words = self.fields.get(name).ok_or_else(|| format!("model.txt has no {name}"))?;
        Ok(words.iter().map(|word| word.parse()).collect::<Result<_, _>>()?)
    }

    fn one<T: FromStr<Err: Error + 'static>>(&self, name: &str) -> Result<T, Box<dyn Error>> {
        Ok(self.all(name)?.pop().ok_or_else(|| format!("model.txt has no value of {name}"))?)
    }

    fn config(&self) -> Result<Config, Box<dyn Error>> {
        Ok(Config {
            layers: self.one("layers")?,
            width: self.one("width")?,
            heads: self.one("heads")?,
            kv_heads: self.one("kv_heads")?,
            head_dim: self.one("head_dim")?,
            epsilon: self.one("epsilon")?,
            rope: RopeConfig {
                frequencies: self.all("frequencies")?,
                interleaved: self.one("interleaved")?,
                magnitude: self.one("magnitude")?,
            },
            fused_attention: true,
        })
    }
}

impl Source for Folder {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|(_, shape)| shape.clone())
    }

    fn read(&mut self, name: &str) -> enginecmp_shim::Result<Vec<f32>> {
        let (offset, shape) = &self.tensors[name];
        let mut bytes = vec![0; shape.iter().product::<usize>() * size_of::<f32>()];
        let start = SeekFrom::Start((offset * size_of::<f32>()) as u64);
        let read = self.weights.seek(start).and_then(|_| self.weights.read_exact(&mut bytes));
        read.map_err(|error| Failure::Engine(format!("{name} could not be read: {error}")))?;
        let (values, _) = bytes.as_chunks();
        Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, n_tokens, prompt @ ..] = arguments.as_slice() else {
        return Err("expected FOLDER N_TOKENS TOKEN...".into());
    };
    let n_tokens: usize = n_tokens.parse()?;
    let prompt: Vec<u32> = prompt.iter().map(|token| token.parse()).collect::<Result<_, _>>()?;
    let mut folder = Folder::open(Path::new(folder))?;
    let limits = Limits { context_tokens: prompt.len() + n_tokens, reason: String::new(), prompt_chunk: 512 };
    let options = Options { device: "cpu".to_owned(), limits };
    let mut session = load(folder.config()?, &mut folder, options)?;
    enginecmp_shim::bare::answer(&mut session, &prompt, n_tokens, stdin().lock(), stdout().lock())?;
    Ok(())
}
