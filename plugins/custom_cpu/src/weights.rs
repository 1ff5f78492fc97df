//! Tensors of a file in the form that the kernels compute with, and how many bytes they take.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use cpu_kernels::{Format, Matrix, Pool, dequantize};
use enginecmp_shim::{Failure, Result, refuse};

use crate::file::{GgufFile, Tensor};

/// A projection: x (tokens, inputs) to (tokens, outputs).
pub struct Linear {
    outputs: usize,
    /// None where it came packed.
    source: Option<Source>,
    packed: OnceLock<Matrix>,
    pub bias: Option<Vec<f32>>,
}

/// Where a projection lies in a file.
struct Source {
    file: Arc<GgufFile>,
    tensor: Tensor,
    format: Format,
    /// Those of the tensor's rows that it consists of: several projections may share one tensor.
    rows: Range<usize>,
}

impl Source {
    fn bytes(&self) -> &[u8] {
        rows_of(&self.file, &self.tensor, self.format, self.rows.clone())
    }
}

impl Linear {
    /// A projection of no file.
    #[cfg(feature = "python")]
    pub fn packed(matrix: Matrix, outputs: usize) -> Self {
        Self { outputs, source: None, packed: OnceLock::from(matrix), bias: None }
    }

    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The matrix as the kernels want it, packed now if it has not been.
    ///
    /// # Errors
    ///
    /// [`Failure::OutOfMemory`].
    pub fn matrix(&self, pool: &Pool) -> Result<&Matrix> {
        if let Some(matrix) = self.packed.get() {
            return Ok(matrix);
        }
        let source = self.source.as_ref().expect("what came packed stays packed");
        let columns = source.tensor.shape[1];
        let matrix =
            Matrix::new(source.format, self.outputs, columns, source.bytes(), pool).map_err(Failure::of_library)?;
        source.file.forget(&source.tensor);
        Ok(self.packed.get_or_init(|| matrix))
    }

    /// Bytes in memory: packed, or in the mapped file until then.
    pub fn bytes(&self) -> usize {
        let matrix = match self.packed.get() {
            Some(matrix) => matrix.bytes(),
            None => self.source.as_ref().map_or(0, |source| source.bytes().len()),
        };
        matrix + self.bias.as_ref().map_or(0, |bias| size_of_val(bias.as_slice()))
    }
}

/// Rows that are looked up by id, in the mapped file.
pub struct Lookup {
    file: Arc<GgufFile>,
    tensor: Tensor,
    format: Format,
}

impl Lookup {
    pub fn rows(&self) -> usize {
        self.tensor.shape[0]
    }

    pub fn row(&self, id: usize, out: &mut [f32]) {
        dequantize(self.format, rows_of(&self.file, &self.tensor, self.format, id..id + 1), out);
    }

    pub fn bytes(&self) -> usize {
        self.file.bytes(&self.tensor).len()
    }
}

/// Weight and bias of a norm.
pub struct NormWeights {
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
}

/// Finds tensors by name and checks their shapes.
pub struct Reader {
    pub file: Arc<GgufFile>,
}

impl Reader {
    pub fn has(&self, name: &str) -> bool {
        self.file.tensors.contains_key(name)
    }

    /// The projection `name`.weight of this shape, with `name`.bias where the file has one.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let [linear] = self.split(name, [outputs], inputs)?;
        Ok(linear)
    }

    /// The projections that lie one above the other in `name`.weight, each with its part of `name`.bias.
    pub fn split<const N: usize>(&self, name: &str, outputs: [usize; N], inputs: usize) -> Result<[Linear; N]> {
        let total = outputs.iter().try_fold(0_usize, |sum, n| sum.checked_add(*n)).unwrap_or(usize::MAX);
        let (tensor, format) = self.find(&format!("{name}.weight"), &[total, inputs])?;
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.vector(&bias, total)?) } else { None };
        let mut start = 0;
        Ok(outputs.map(|count| {
            let rows = start..start + count;
            start = rows.end;
            Linear {
                outputs: count,
                bias: bias.as_ref().map(|bias| bias[rows.clone()].to_vec()),
                source: Some(Source { file: self.file.clone(), tensor: tensor.clone(), format, rows }),
                packed: OnceLock::new(),
            }
        }))
    }

    pub fn lookup(&self, name: &str, width: usize) -> Result<Lookup> {
        let rows = self.row_count(name)?;
        let (tensor, format) = self.find(name, &[rows, width])?;
        Ok(Lookup { file: self.file.clone(), tensor: tensor.clone(), format })
    }

    /// Weight and bias of a norm; without a bias in the file it is zero.
    pub fn norm(&self, name: &str, width: usize, biased: bool) -> Result<NormWeights> {
        let bias = if biased { self.vector(&format!("{name}.bias"), width)? } else { Vec::new() };
        Ok(NormWeights { weight: self.vector(&format!("{name}.weight"), width)?, bias })
    }

    /// A vector as F32: the weight of a norm, a bias, factors.
    pub fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>> {
        let (tensor, format) = self.find(name, &[length])?;
        let mut values = vec![0.0; length];
        dequantize(format, self.file.bytes(tensor), &mut values);
        Ok(values)
    }

    /// Number of rows of a matrix.
    pub fn row_count(&self, name: &str) -> Result<usize> {
        match self.file.tensors.get(name) {
            Some(tensor) if tensor.shape.len() == 2 => Ok(tensor.shape[0]),
            Some(tensor) => Err(refuse(&format!("a matrix {name}"), &format!("shape {:?}", tensor.shape))),
            None => Err(refuse(&format!("a tensor {name}"), "none")),
        }
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Tensor, Format)> {
        let Some(tensor) = self.file.tensors.get(name) else {
            return Err(refuse(&format!("a tensor {name}"), "none"));
        };
        if tensor.shape != shape {
            return Err(refuse(&format!("{name} of shape {shape:?}"), &format!("{:?}", tensor.shape)));
        }
        let known = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K";
        let got = || format!("GGML type {}", tensor.type_number);
        Ok((tensor, tensor.format.ok_or_else(|| refuse(&format!("{name} of a type among {known}"), &got()))?))
    }
}

fn rows_of<'a>(file: &'a GgufFile, tensor: &Tensor, format: Format, rows: Range<usize>) -> &'a [u8] {
    let row = format.row_bytes(tensor.shape[tensor.shape.len() - 1]).expect("checked when the header was read");
    &file.bytes(tensor)[rows.start * row..rows.end * row]
}
