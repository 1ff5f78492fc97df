//! The extension module `enginecmp_burn._shim`: Python reads the file, Burn takes the tensors.

use std::collections::HashMap;

use enginecmp_shim::python::{PySession, exception};
use enginecmp_shim::{Failure, Limits, Result};
use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;

use crate::model::Config;
use crate::rope::RopeConfig;
use crate::session::{self, Options};
use crate::weights::Source;

const ENGINE: &str = "burn";
const COMPILED_FOR: &str = enginecmp_shim::compiled_for!("enginecmp-burn");

/// Attributes of `enginecmp.models.decoder.RopeConfig`.
#[derive(FromPyObject)]
struct PyRope {
    interleaved: bool,
    magnitude: f64,
}

/// Attributes of `enginecmp.models.decoder.DecoderConfig`.
#[derive(FromPyObject)]
struct PyConfig {
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    epsilon: f64,
    rope: PyRope,
}

/// Tensors that Python reads and widens, one at a time.
struct PySource {
    shapes: HashMap<String, Vec<usize>>,
    read: Py<PyAny>,
    /// What `read` raised: the caller sees this and not a line about it.
    raised: Option<PyErr>,
}

impl PySource {
    fn call(&self, name: &str) -> PyResult<Vec<f32>> {
        Python::attach(|py| PyBuffer::<f32>::get(self.read.bind(py).call1((name,))?.as_any())?.to_vec(py))
    }
}

impl Source for PySource {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>> {
        self.call(name).map_err(|raised| {
            self.raised = Some(raised);
            Failure::Engine(format!("{name} could not be read"))
        })
    }
}

#[pyfunction]
#[allow(clippy::too_many_arguments)]
fn load(
    py: Python<'_>,
    config: PyConfig,
    frequencies: Vec<f64>,
    shapes: HashMap<String, Vec<usize>>,
    read: Py<PyAny>,
    device: String,
    context_tokens: usize,
    limit: String,
    prompt_chunk: usize,
    fused_attention: bool,
) -> PyResult<PySession> {
    let PyConfig { layers, width, heads, kv_heads, head_dim, epsilon, rope } = config;
    let rope = RopeConfig { frequencies, interleaved: rope.interleaved, magnitude: rope.magnitude };
    let config = Config { layers, width, heads, kv_heads, head_dim, epsilon, rope, fused_attention };
    let limits = Limits { context_tokens, reason: limit, prompt_chunk: prompt_chunk.max(1) };
    let mut source = PySource { shapes, read, raised: None };
    let loaded = py.detach(|| session::load(config, &mut source, Options { device, limits }));
    match (loaded, source.raised) {
        (Ok(session), _) => Ok(PySession::new(ENGINE, session)),
        (Err(_), Some(raised)) => Err(raised),
        (Err(failure), None) => Err(exception(ENGINE, &failure)),
    }
}

/// Names of the optional parts that this build has.
#[pyfunction]
fn features() -> Vec<&'static str> {
    if cfg!(feature = "cuda") { vec!["cuda"] } else { Vec::new() }
}

#[pymodule]
fn _shim(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("COMPILED_FOR", COMPILED_FOR)?;
    module.add_class::<PySession>()?;
    module.add_function(wrap_pyfunction!(load, module)?)?;
    module.add_function(wrap_pyfunction!(features, module)?)?;
    Ok(())
}
