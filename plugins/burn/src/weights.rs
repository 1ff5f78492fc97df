//! Tensors by name, in the form that Burn computes with, and how many bytes they take.

use std::collections::HashSet;

use burn::tensor::module::linear;
use burn::tensor::{Device, Int, Tensor, TensorData};
use enginecmp_shim::{Result, refuse};

/// Where weights come from: a model file that somebody else reads and widens to float32.
pub trait Source {
    /// Names of all tensors.
    fn names(&self) -> Vec<String>;

    /// Extents of a tensor, row-major, or None where there is none of this name.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// Values of a tensor that is there, row-major.
    ///
    /// # Errors
    ///
    /// Whatever reading the file ends in.
    fn read(&mut self, name: &str) -> Result<Vec<f32>>;
}

/// A projection: x (tokens, inputs) to (tokens, outputs).
#[derive(Debug, Clone)]
pub struct Linear {
    // (inputs, outputs), a view of the file's order. Written out in this order, one token's product would add up
    // input after input: rounding errors half as large again, and no time saved.
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

impl Linear {
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        linear(x, self.weight.clone(), self.bias.clone())
    }
}

/// One row per token id.
#[derive(Debug)]
pub struct Embedding {
    rows: Tensor<2>, // (vocabulary, width)
}

impl Embedding {
    pub fn forward(&self, ids: Tensor<1, Int>) -> Tensor<2> {
        self.rows.clone().select(0, ids)
    }

    /// The head of a model without a matrix of its own: the same memory.
    pub fn as_head(&self) -> Linear {
        Linear { weight: self.rows.clone().transpose(), bias: None }
    }
}

/// Makes tensors of what a source holds and counts the bytes that stay in memory.
pub struct Reader<'a> {
    source: &'a mut dyn Source,
    device: &'a Device,
    seen: HashSet<String>,
    pub bytes: usize,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a mut dyn Source, device: &'a Device) -> Self {
        Self { source, device, seen: HashSet::new(), bytes: 0 }
    }

    pub fn has(&self, name: &str) -> bool {
        self.source.shape(name).is_some()
    }

    /// The projection `name`.weight of this shape, with `name`.bias where the file has one.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let weight = self.read(&format!("{name}.weight"), [outputs, inputs])?.transpose();
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.read(&bias, [outputs])?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// The matrix `name`.weight with a row for every token.
    pub fn embedding(&mut self, name: &str, vocabulary: usize, width: usize) -> Result<Embedding> {
        Ok(Embedding { rows: self.read(&format!("{name}.weight"), [vocabulary, width])? })
    }

    /// A tensor of this shape, float32, on the device.
    pub fn read<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Result<Tensor<D>> {
        let Some(found) = self.source.shape(name) else {
            return Err(refuse(&format!("a tensor {name}"), "none"));
        };
        if found != shape {
            return Err(refuse(&format!("{name} of shape {shape:?}"), &format!("{found:?}")));
        }
        let values = self.source.read(name)?;
        self.bytes += size_of_val(values.as_slice());
        self.seen.insert(name.to_owned());
        Ok(Tensor::from_data(TensorData::new(values, shape), self.device))
    }

    /// Number of rows of a matrix, without reading it.
    pub fn row_count(&self, name: &str) -> Result<usize> {
        match self.source.shape(name).as_deref() {
            Some(&[rows, _]) => Ok(rows),
            Some(shape) => Err(refuse(&format!("a matrix {name}"), &format!("shape {shape:?}"))),
            None => Err(refuse(&format!("a tensor {name}"), "none")),
        }
    }

    /// Refuses a file with tensors that nobody asked for: they would change the computation.
    pub fn refuse_unread(&self, allowed: &[&str]) -> Result<()> {
        let mut unread = self.source.names();
        unread.retain(|name| !self.seen.contains(name) && !allowed.contains(&name.as_str()));
        unread.sort();
        match unread.first() {
            Some(name) => Err(refuse("only tensors that are implemented here", name)),
            None => Ok(()),
        }
    }
}
