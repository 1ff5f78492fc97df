//! The extension module `enginecmp_burn._shim`: the session, with the GIL released wherever Burn works.

use std::collections::HashMap;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::failure::{Failure, Result};
use crate::model::Config;
use crate::rope::RopeConfig;
use crate::session::{Options, Session, Stamped};
use crate::weights::Source;

pyo3::import_exception!(enginecmp.errors, ContextOverflow);
pyo3::import_exception!(enginecmp.errors, EngineError);
pyo3::import_exception!(enginecmp.errors, UnsupportedModel);

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        let line = format!("burn: {failure}");
        match failure {
            Failure::Unsupported(_) => UnsupportedModel::new_err(line),
            Failure::ContextOverflow(_) => ContextOverflow::new_err(line),
            Failure::OutOfMemory(_) => PyMemoryError::new_err(line),
            Failure::Engine(_) => EngineError::new_err(line),
        }
    }
}

/// Attributes of `config.Config` on the Python side.
#[derive(FromPyObject)]
struct PyConfig {
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    epsilon: f64,
    frequencies: Vec<f64>,
    interleaved: bool,
    magnitude: f64,
    unread: Vec<String>,
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

/// A loaded model and one request after the other; nothing after `close`.
#[pyclass(name = "Session")]
struct PySession {
    // Boxed: Burn's tensors are aligned to more bytes than the memory of a Python object.
    session: Option<Box<Session>>,
}

impl PySession {
    fn open(&mut self) -> PyResult<&mut Session> {
        let closed = || EngineError::new_err("burn: expected a loaded model, it was unloaded; call cmp_load again");
        self.session.as_deref_mut().ok_or_else(closed)
    }
}

#[pymethods]
impl PySession {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn load(
        py: Python<'_>,
        config: PyConfig,
        shapes: HashMap<String, Vec<usize>>,
        read: Py<PyAny>,
        device: String,
        context_tokens: usize,
        limit: String,
        prompt_chunk: usize,
        fused_attention: bool,
    ) -> PyResult<Self> {
        let PyConfig { layers, width, heads, kv_heads, head_dim, epsilon, .. } = config;
        let PyConfig { frequencies, interleaved, magnitude, unread, .. } = config;
        let rope = RopeConfig { frequencies, interleaved, magnitude };
        let config = Config { layers, width, heads, kv_heads, head_dim, epsilon, rope, fused_attention };
        let options = Options { device, context_tokens, limit, prompt_chunk: prompt_chunk.max(1), unread };
        let mut source = PySource { shapes, read, raised: None };
        let loaded = py.detach(|| Session::load(config, &mut source, options));
        match (loaded, source.raised) {
            (Ok(session), _) => Ok(Self { session: Some(Box::new(session)) }),
            (Err(_), Some(raised)) => Err(raised),
            (Err(failure), None) => Err(failure.into()),
        }
    }

    #[getter]
    fn vocabulary(&mut self) -> PyResult<usize> {
        Ok(self.open()?.vocabulary())
    }

    fn reset(&mut self) -> PyResult<()> {
        self.open()?.reset();
        Ok(())
    }

    fn close(&mut self) {
        self.session = None;
    }

    fn prefill(&mut self, py: Python<'_>, token_ids: Vec<i64>, output_tokens: usize) -> PyResult<u32> {
        let (session, ids) = (self.open()?, narrow(&token_ids));
        Ok(py.detach(|| session.prefill(&ids, output_tokens))?)
    }

    fn decode(&mut self, py: Python<'_>, n_tokens: usize) -> PyResult<Stamped> {
        let session = self.open()?;
        Ok(py.detach(|| session.decode(n_tokens))?)
    }

    /// Raw float32 rows, one after the other.
    fn score<'py>(&mut self, py: Python<'py>, token_ids: Vec<i64>) -> PyResult<Bound<'py, PyBytes>> {
        let (session, ids) = (self.open()?, narrow(&token_ids));
        let scores: Result<Vec<f32>> = py.detach(|| session.score(&ids));
        let scores = scores?;
        PyBytes::new_with(py, size_of_val(scores.as_slice()), |bytes| {
            for (bytes, score) in bytes.chunks_exact_mut(size_of::<f32>()).zip(&scores) {
                bytes.copy_from_slice(&score.to_ne_bytes());
            }
            Ok(())
        })
    }

    fn metrics<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metrics = self.open()?.metrics();
        let found = PyDict::new(py);
        found.set_item("weights_bytes", metrics.weights_bytes)?;
        found.set_item("kv_cache_bytes", metrics.kv_cache_bytes)?;
        // Absent, not zero, where there was none.
        for (name, nanoseconds) in
            [("engine_prefill_seconds", metrics.prefill_ns), ("engine_decode_seconds", metrics.decode_ns)]
        {
            if nanoseconds > 0 {
                found.set_item(name, nanoseconds as f64 / 1e9)?;
            }
        }
        Ok(found)
    }
}

/// Ids as the session takes them; one that does not fit becomes the largest, which no vocabulary has.
fn narrow(token_ids: &[i64]) -> Vec<u32> {
    token_ids.iter().map(|id| u32::try_from(*id).unwrap_or(u32::MAX)).collect()
}

/// Names of the optional parts that this build has.
#[pyfunction]
fn features() -> Vec<&'static str> {
    if cfg!(feature = "cuda") { vec!["cuda"] } else { Vec::new() }
}

/// What this build needs of a processor. Python looks for these very bytes in the file, which it must not import on a
/// processor that does not have it.
const COMPILED_FOR: &str = if cfg!(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "fma")) {
    "enginecmp-burn compiled for x86-64-v3"
} else {
    "enginecmp-burn compiled for the baseline"
};

#[pymodule]
fn _shim(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("COMPILED_FOR", COMPILED_FOR)?;
    module.add_class::<PySession>()?;
    module.add_function(wrap_pyfunction!(features, module)?)?;
    Ok(())
}
