//! Weights from somewhere as a session: what Burn does at each step of a request.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use enginecmp_shim::{Failure, Limits, Result, guarded, reserve_cache};

use crate::model::{Config, Model};
use crate::weights::{Reader, Source};

/// How to load a model.
#[derive(Debug, Clone)]
pub struct Options {
    /// "cpu" or "cuda", the latter only in a build with that feature.
    pub device: String,
    pub limits: Limits,
}

/// Tensors that say nothing more once the rotary embedding's frequencies are known.
const UNREAD: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// A model on its device.
#[derive(Debug)]
pub struct Loaded {
    model: Model,
    device: Device,
    weights_bytes: usize,
}

/// One model and one request after the other.
pub type Session = enginecmp_shim::Session<Loaded>;

/// Loads a model. On return the weights are resident and the device is idle.
///
/// # Errors
///
/// [`Failure::Unsupported`] for tensors that are not those of `config`, [`Failure::OutOfMemory`] for a cache that the
/// system has no room for, [`Failure::Engine`] for a device that is not there, and what `source` ends in.
pub fn load(config: Config, source: &mut dyn Source, options: Options) -> Result<Session> {
    guarded("loading the model", || {
        let Options { device, limits } = options;
        let device = open_device(&device)?;
        reserve_cache(config.layers, config.kv_heads, config.head_dim, limits.context_tokens)?;
        let mut reader = Reader::new(source, &device);
        let model = Model::read(config, &mut reader, limits.context_tokens, &device)?;
        reader.refuse_unread(&UNREAD)?;
        let weights_bytes = reader.bytes;
        device.sync().map_err(|error| device_failed(&error))?;
        Ok(Session::new(Loaded { model, device, weights_bytes }, limits))
    })
}

impl enginecmp_shim::Model for Loaded {
    type Hidden = Tensor<2>; // (tokens, width)
    type Token = Tensor<1, Int>; // (1,)

    fn vocabulary(&self) -> usize {
        self.model.vocabulary
    }

    fn weights_bytes(&self) -> usize {
        self.weights_bytes
    }

    fn kv_bytes_per_token(&self) -> usize {
        self.model.kv_bytes_per_token()
    }

    fn run(&mut self, ids: &[u32], past: usize) -> Result<Tensor<2>> {
        let values: Vec<i32> = ids.iter().map(|id| id.cast_signed()).collect();
        Ok(self.model.hidden(Tensor::from_data(TensorData::new(values, [ids.len()]), &self.device), past))
    }

    fn step(&mut self, token: Tensor<1, Int>, past: usize) -> Result<Tensor<2>> {
        Ok(self.model.hidden(token, past))
    }

    fn choose(&self, hidden: Tensor<2>) -> Result<(Tensor<1, Int>, u32)> {
        let [tokens, _] = hidden.dims();
        let last = hidden.narrow(0, tokens - 1, 1); // (1, width)
        let token: Tensor<1, Int> = self.model.logits(last).argmax(1).reshape([1]);
        let id = on_host::<i64>(token.clone().try_into_data())?[0];
        Ok((token, id as u32))
    }

    fn logits(&self, hidden: &Tensor<2>, rows: Range<usize>) -> Result<Vec<f32>> {
        let rows = hidden.clone().narrow(0, rows.start, rows.len());
        on_host(self.model.logits(rows).try_into_data())
    }
}

/// Values of a tensor that was read back, widened or narrowed to `T`.
fn on_host<T: burn::tensor::Element>(data: std::result::Result<TensorData, impl std::fmt::Display>) -> Result<Vec<T>> {
    let data = data.map_err(|error| device_failed(&error))?;
    data.convert::<T>().try_into_vec().map_err(|error| Failure::Engine(format!("unreadable values: {error:?}")))
}

fn device_failed(error: &impl std::fmt::Display) -> Failure {
    Failure::of_library(format!("the device failed: {error}"))
}

fn open_device(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => {
            // Asked first: without a driver, opening a device panics.
            if Device::enumerate(burn::tensor::DeviceType::Cuda).is_empty() {
                let line =
                    "expected an NVIDIA GPU and its driver, found none; look at nvidia-smi, or pass --device cpu";
                return Err(Failure::Engine(line.to_owned()));
            }
            Ok(Device::cuda(0))
        }
        #[cfg(not(feature = "cuda"))]
        "cuda" => {
            Err(Failure::Engine("this build of the extension has no CUDA; build it with the feature cuda".to_owned()))
        }
        other => Err(Failure::Engine(format!("expected device cpu or cuda, got '{other}'"))),
    }
}
