//! Tensors of a GGUF file, in the form that Candle computes with, and how many bytes they take.

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};
use enginecmp_shim::{Result, refuse};

use crate::failure::failed;

/// A projection: x (tokens, inputs) to (tokens, outputs).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: QMatMul,
    bias: Option<Tensor>,
}

impl Linear {
    pub fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let y = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// Rows of the matrix: what an embedding is.
    pub fn rows(&self, ids: &Tensor) -> candle_core::Result<Tensor> {
        self.weight.embedding(ids)?.to_dtype(DType::F32)
    }
}

/// Reads tensors by name and counts the bytes that stay in memory.
pub struct Reader<'a> {
    content: &'a Content,
    file: BufReader<File>,
    device: &'a Device,
    pub bytes: usize,
}

impl<'a> Reader<'a> {
    pub fn new(content: &'a Content, file: BufReader<File>, device: &'a Device) -> Self {
        Self { content, file, device, bytes: 0 }
    }

    pub fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// The projection `name`.weight of this shape, with `name`.bias where the file has one.
    ///
    /// Candle multiplies by quantized matrices as they are and widens F16 and BF16 to F32.
    pub fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let tensor = self.read(&format!("{name}.weight"), &[outputs, inputs])?;
        let weight = QMatMul::from_arc(Arc::new(tensor)).map_err(failed)?;
        self.bytes += match &weight {
            QMatMul::QTensor(tensor) => tensor.storage_size_in_bytes(),
            QMatMul::Tensor(tensor) | QMatMul::TensorF16(tensor) => size(tensor),
        };
        let bias = format!("{name}.bias");
        let bias = if self.has(&bias) { Some(self.vector(&bias, outputs)?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// A vector as F32: the weight of a norm, a bias, factors.
    pub fn vector(&mut self, name: &str, length: usize) -> Result<Tensor> {
        let vector = self.read(name, &[length])?.dequantize(self.device).map_err(failed)?;
        self.bytes += size(&vector);
        Ok(vector)
    }

    /// Number of rows of a matrix, without reading it.
    pub fn row_count(&self, name: &str) -> Result<usize> {
        match self.content.tensor_infos.get(name) {
            Some(info) if info.shape.rank() == 2 => Ok(info.shape.dims()[0]),
            Some(info) => Err(refuse(&format!("a matrix {name}"), &format!("shape {:?}", info.shape.dims()))),
            None => Err(refuse(&format!("a tensor {name}"), "none")),
        }
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<QTensor> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Err(refuse(&format!("a tensor {name}"), "none"));
        };
        if info.shape.dims() != shape {
            return Err(refuse(&format!("{name} of shape {shape:?}"), &format!("{:?}", info.shape.dims())));
        }
        info.read(&mut self.file, self.content.tensor_data_offset, self.device).map_err(failed)
    }
}

fn size(tensor: &Tensor) -> usize {
    tensor.elem_count() * tensor.dtype().size_in_bytes()
}
