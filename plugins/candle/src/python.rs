//! The extension module `enginecmp_candle._shim`: the session, with the GIL released wherever Candle works.

use std::path::PathBuf;

use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::failure::{Failure, Result};
use crate::session::{Options, Session, Stamped};

pyo3::import_exception!(enginecmp.errors, ContextOverflow);
pyo3::import_exception!(enginecmp.errors, EngineError);
pyo3::import_exception!(enginecmp.errors, UnsupportedModel);

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        let line = format!("candle: {failure}");
        match failure {
            Failure::Unsupported(_) => UnsupportedModel::new_err(line),
            Failure::ContextOverflow(_) => ContextOverflow::new_err(line),
            Failure::OutOfMemory(_) => PyMemoryError::new_err(line),
            Failure::Engine(_) => EngineError::new_err(line),
        }
    }
}

/// A loaded model and one request after the other; nothing after `close`.
#[pyclass(name = "Session")]
struct PySession {
    session: Option<Session>,
}

impl PySession {
    fn open(&mut self) -> PyResult<&mut Session> {
        let closed = || EngineError::new_err("candle: expected a loaded model, it was unloaded; call cmp_load again");
        self.session.as_mut().ok_or_else(closed)
    }
}

#[pymethods]
impl PySession {
    #[new]
    fn load(
        py: Python<'_>,
        path: PathBuf,
        device: String,
        context_tokens: usize,
        prompt_chunk: usize,
    ) -> PyResult<Self> {
        let options = Options { device, context_tokens, prompt_chunk };
        let session = py.detach(|| Session::load(&path, &options))?;
        Ok(Self { session: Some(session) })
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

/// Ids as Candle takes them; one that does not fit becomes the largest, which no vocabulary has.
fn narrow(token_ids: &[i64]) -> Vec<u32> {
    token_ids.iter().map(|id| u32::try_from(*id).unwrap_or(u32::MAX)).collect()
}

/// Names of the optional parts that this build has.
#[pyfunction]
fn features() -> Vec<&'static str> {
    [
        ("cuda", candle_core::utils::cuda_is_available()),
        ("mkl", candle_core::utils::has_mkl()),
        ("accelerate", candle_core::utils::has_accelerate()),
    ]
    .into_iter()
    .filter_map(|(name, there)| there.then_some(name))
    .collect()
}

/// What this build needs of a processor. Python looks for these very bytes in the file, which it must not import on a
/// processor that does not have it.
const COMPILED_FOR: &str = if cfg!(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "fma")) {
    "enginecmp-candle compiled for x86-64-v3"
} else {
    "enginecmp-candle compiled for the baseline"
};

#[pymodule]
fn _shim(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("COMPILED_FOR", COMPILED_FOR)?;
    module.add_class::<PySession>()?;
    module.add_function(wrap_pyfunction!(features, module)?)?;
    Ok(())
}
