//! Sessions for Python, with the GIL released wherever the engine works.

use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::failure::{Failure, Result};
use crate::session::{Engine, Stamped};

pyo3::import_exception!(enginecmp.errors, ContextOverflow);
pyo3::import_exception!(enginecmp.errors, EngineError);
pyo3::import_exception!(enginecmp.errors, UnsupportedModel);

/// The exception of a failure, `engine` in front.
#[must_use]
pub fn exception(engine: &str, failure: &Failure) -> PyErr {
    let line = format!("{engine}: {failure}");
    match failure {
        Failure::Unsupported(_) => UnsupportedModel::new_err(line),
        Failure::ContextOverflow(_) => ContextOverflow::new_err(line),
        Failure::OutOfMemory(_) => PyMemoryError::new_err(line),
        Failure::Engine(_) => EngineError::new_err(line),
    }
}

/// A loaded model and one request after the other; nothing after `close`.
#[pyclass(name = "Session")]
pub struct PySession {
    engine: &'static str,
    // Boxed: a library's tensors may be aligned to more bytes than the memory of a Python object.
    session: Option<Box<dyn Engine>>,
}

impl PySession {
    /// A session of `engine`, whose name messages start with.
    #[must_use]
    pub fn new(engine: &'static str, session: impl Engine + 'static) -> Self {
        Self { engine, session: Some(Box::new(session)) }
    }

    fn open(&mut self) -> PyResult<&mut dyn Engine> {
        let engine = self.engine;
        match self.session.as_deref_mut() {
            Some(session) => Ok(session),
            None => {
                let line = "expected a loaded model, it was unloaded; call cmp_load again".to_owned();
                Err(exception(engine, &Failure::Engine(line)))
            }
        }
    }

    fn work<T: Send>(&mut self, py: Python<'_>, call: impl FnOnce(&mut dyn Engine) -> Result<T> + Send) -> PyResult<T> {
        let engine = self.engine;
        let session = self.open()?;
        py.detach(|| call(session)).map_err(|failure| exception(engine, &failure))
    }
}

#[pymethods]
impl PySession {
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
        let ids = narrow(&token_ids);
        self.work(py, |session| session.prefill(&ids, output_tokens))
    }

    fn decode(&mut self, py: Python<'_>, n_tokens: usize) -> PyResult<Stamped> {
        self.work(py, |session| session.decode(n_tokens))
    }

    /// Raw float32 rows, one after the other.
    fn score<'py>(&mut self, py: Python<'py>, token_ids: Vec<i64>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = narrow(&token_ids);
        let scores = self.work(py, |session| session.score(&ids))?;
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

/// Ids as a session takes them; one that does not fit becomes the largest, which no vocabulary has.
fn narrow(token_ids: &[i64]) -> Vec<u32> {
    token_ids.iter().map(|id| u32::try_from(*id).unwrap_or(u32::MAX)).collect()
}

/// What a build needs of a processor, after the name of its distribution. Python looks for these very bytes in the
/// file, which it must not import on a processor that does not have it.
#[macro_export]
macro_rules! compiled_for {
    ($distribution:literal) => {
        if cfg!(all(target_arch = "x86_64", target_feature = "avx2", target_feature = "fma")) {
            concat!($distribution, " compiled for x86-64-v3")
        } else {
            concat!($distribution, " compiled for the baseline")
        }
    };
}
