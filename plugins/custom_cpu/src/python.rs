//! The extension module `enginecmp_custom_cpu._shim`. The GIL is released wherever the engine works.

use std::path::PathBuf;
use std::sync::Arc;

use cpu_kernels::{Format, KvType, Matrix, Pool};
use enginecmp_shim::python::exception;
use enginecmp_shim::{Engine, Failure, Result, Stamped};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::batch::Decoding;
use crate::elements::{Elements, Function};
use crate::layer::{Layer, Shape, plain_rope};
use crate::product::Product;
use crate::sample::{Draws, Sampler, Strategy};
use crate::session::{self, Options, Session};

const ENGINE: &str = "custom_cpu";

fn told(failure: &Failure) -> PyErr {
    exception(ENGINE, failure)
}

/// A loaded model and its requests; nothing after `close`.
#[pyclass(name = "Session")]
struct PySession(Option<Session>);

impl PySession {
    fn open(&mut self) -> PyResult<&mut Session> {
        self.0.as_mut().ok_or_else(|| {
            told(&Failure::Engine("expected a loaded model, it was unloaded; call cmp_load again".to_owned()))
        })
    }

    fn work<T: Send>(&mut self, py: Python<'_>, call: impl FnOnce(&mut Session) -> Result<T> + Send) -> PyResult<T> {
        let session = self.open()?;
        py.detach(|| call(session)).map_err(|failure| told(&failure))
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
        self.0 = None;
    }

    fn prefill(&mut self, py: Python<'_>, token_ids: Vec<i64>, output_tokens: usize) -> PyResult<u32> {
        let ids = narrow(&token_ids);
        self.work(py, |session| session.prefill(&ids, output_tokens))
    }

    fn decode(&mut self, py: Python<'_>, n_tokens: usize) -> PyResult<Stamped> {
        self.work(py, |session| session.decode(n_tokens))
    }

    /// `strategy` is temperature, top-k, top-p and seed; None takes the most likely ids.
    fn submit(
        &mut self,
        id: String,
        token_ids: Vec<i64>,
        output_tokens: usize,
        strategy: Option<(f64, usize, f64, u64)>,
        end_ids: Vec<i64>,
    ) -> PyResult<bool> {
        let ids = narrow(&token_ids);
        let decoding = decoding_of(strategy, &end_ids);
        self.open()?.submit(id, &ids, output_tokens, decoding).map_err(|failure| told(&failure))
    }

    /// Chooses the next request's ids by temperature, top-k, top-p and seed; None takes the most likely ones.
    fn decode_by(&mut self, strategy: Option<(f64, usize, f64, u64)>) -> PyResult<()> {
        self.open()?.decode_by(decoding_of(strategy, &[])).map_err(|failure| told(&failure))
    }

    fn step(&mut self, py: Python<'_>) -> PyResult<Vec<(String, u32)>> {
        self.work(py, Session::step)
    }

    /// Raw float32 rows, one after the other.
    fn score<'py>(&mut self, py: Python<'py>, token_ids: Vec<i64>) -> PyResult<Bound<'py, PyBytes>> {
        let ids = narrow(&token_ids);
        let scores = self.work(py, |session| session.score(&ids))?;
        raw(py, &scores)
    }

    fn profile<'py>(&mut self, py: Python<'py>, token_ids: Vec<i64>, n_tokens: usize) -> PyResult<Bound<'py, PyDict>> {
        let ids = narrow(&token_ids);
        let found = PyDict::new(py);
        for (component, seconds) in self.work(py, |session| session.profile(&ids, n_tokens))? {
            found.set_item(component, seconds)?;
        }
        Ok(found)
    }

    fn metrics<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let session = self.open()?;
        let metrics = session.metrics();
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
        for (name, value) in session.own_metrics() {
            found.set_item(name, value)?;
        }
        Ok(found)
    }

    /// What draws ids from the distribution after some ids.
    fn draws_after(
        &mut self,
        py: Python<'_>,
        token_ids: Vec<i64>,
        temperature: f64,
        top_k: usize,
        top_p: f64,
        seed: u64,
    ) -> PyResult<PyDraws> {
        let ids = narrow(&token_ids);
        let logits = self.work(py, |session| session.last_logits(&ids))?;
        Ok(PyDraws(Draws::new(logits, Strategy { temperature, top_k, top_p }, seed)))
    }

    /// The product of `left`, (rows, inner), and a matrix given transposed, (columns, inner); raw float32 values.
    ///
    /// `threads` 0 multiplies without the kernels.
    fn product(&mut self, left: &[u8], transposed: &[u8], inner: usize, threads: usize) -> PyResult<PyProduct> {
        let pool = match threads {
            0 => None,
            count => {
                let own = self.open()?.pool();
                Some(if own.threads() == count { own } else { Arc::new(Pool::new(count)) })
            }
        };
        let product = Product::new(values(left), values(transposed), inner, pool);
        product.map(PyProduct).map_err(|failure| told(&failure))
    }

    /// One of the functions between the products on rows of `length` raw float32 values; None where there is no such one.
    #[allow(clippy::too_many_arguments)] // named on the Python side
    #[pyo3(signature = (function, a, b, *, length, head_dim, start, rope_base, epsilon))]
    fn elements(
        &mut self,
        function: &str,
        a: &[u8],
        b: &[u8],
        length: usize,
        head_dim: usize,
        start: usize,
        rope_base: f64,
        epsilon: f32,
    ) -> PyResult<Option<PyElements>> {
        let pool = self.open()?.pool();
        let (a, b) = (values(a), values(b));
        let function = match function {
            "add" => Function::Add,
            "silu_mul" => Function::SiluMul,
            "rms_norm" => Function::RmsNorm(epsilon),
            "softmax" => Function::Softmax,
            "rope" => Function::rope(plain_rope(rope_base, head_dim), head_dim, start, a.len() / length),
            _ => return Ok(None),
        };
        let answer = vec![0.0; a.len()];
        Ok(Some(PyElements(Elements { function, pool, a, b, length, answer })))
    }

    /// One layer with its input and cache; `array` returns raw float32 values by name, asked one at a time.
    #[allow(clippy::too_many_arguments)] // named on the Python side
    #[pyo3(signature = (array, *, rows, past, width, heads, kv_heads, head_dim, feed_forward, rope_base, epsilon))]
    fn layer(
        &mut self,
        array: &Bound<'_, PyAny>,
        rows: usize,
        past: usize,
        width: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        feed_forward: usize,
        rope_base: f64,
        epsilon: f32,
    ) -> PyResult<PyLayer> {
        let shape = Shape { rows, past, width, heads, kv_heads, head_dim, feed_forward, rope_base, epsilon };
        let session = self.open()?;
        let (pool, kind) = (session.pool(), session.kv_type());
        let bytes = |name: &str| -> Result<Bound<'_, PyBytes>> {
            let found = array.call1((name,)).and_then(|found| Ok(found.cast_into::<PyBytes>()?));
            found.map_err(|error| Failure::Engine(format!("expected {name} as bytes, got {error}")))
        };
        let matrix = |name: &str, outputs: usize, inputs: usize| {
            Matrix::new(Format::F32, outputs, inputs, bytes(name)?.as_bytes(), &pool).map_err(Failure::of_library)
        };
        let layer = Layer::new(&shape, kind, pool.clone(), matrix, |name| Ok(values(bytes(name)?.as_bytes())));
        layer.map(PyLayer).map_err(|failure| told(&failure))
    }
}

#[pyclass(name = "Draws")]
struct PyDraws(Draws);

#[pymethods]
impl PyDraws {
    fn draw(&mut self) -> u32 {
        self.0.draw()
    }
}

#[pyclass(name = "Product")]
struct PyProduct(Product);

#[pymethods]
impl PyProduct {
    fn multiply(&mut self, py: Python<'_>) {
        let product = &mut self.0;
        py.detach(|| product.multiply());
    }

    fn answer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        raw(py, &self.0.answer)
    }
}

#[pyclass(name = "Elements")]
struct PyElements(Elements);

#[pymethods]
impl PyElements {
    fn run(&mut self, py: Python<'_>) {
        let elements = &mut self.0;
        py.detach(|| elements.run());
    }

    fn answer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        raw(py, &self.0.answer)
    }
}

#[pyclass(name = "Layer")]
struct PyLayer(Layer);

#[pymethods]
impl PyLayer {
    fn run(&mut self, py: Python<'_>) -> PyResult<()> {
        let layer = &mut self.0;
        py.detach(|| layer.run()).map_err(|failure| told(&failure))
    }

    fn answer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        raw(py, self.0.answer())
    }
}

#[pyfunction]
#[allow(clippy::too_many_arguments)] // named on the Python side
#[pyo3(signature = (path, *, threads, context_tokens, max_sequences, prompt_chunk, kv_type, sliding_window,
                    context_shift, prefix_cache, draft, lookup, draft_tokens, packs_at_load))]
fn load(
    py: Python<'_>,
    path: PathBuf,
    threads: usize,
    context_tokens: usize,
    max_sequences: usize,
    prompt_chunk: usize,
    kv_type: &str,
    sliding_window: usize,
    context_shift: bool,
    prefix_cache: bool,
    draft: Option<PathBuf>,
    lookup: usize,
    draft_tokens: usize,
    packs_at_load: bool,
) -> PyResult<PySession> {
    let kv = match kv_type {
        "f32" => KvType::F32,
        "q8_0" => KvType::Q8_0,
        _ => KvType::F16,
    };
    let options = Options {
        threads,
        context_tokens,
        max_sequences,
        prompt_chunk,
        kv,
        sliding_window,
        context_shift,
        prefix_cache,
        draft,
        lookup,
        draft_tokens,
        packs_at_load,
    };
    let loaded = py.detach(|| session::load(&path, &options));
    loaded.map(|session| PySession(Some(session))).map_err(|failure| told(&failure))
}

/// The instructions that the kernels chose for this processor.
#[pyfunction]
fn instruction_set() -> &'static str {
    cpu_kernels::instruction_set()
}

#[pymodule]
fn _shim(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PySession>()?;
    module.add_function(wrap_pyfunction!(load, module)?)?;
    module.add_function(wrap_pyfunction!(instruction_set, module)?)?;
    Ok(())
}

fn decoding_of(strategy: Option<(f64, usize, f64, u64)>, end_ids: &[i64]) -> Decoding {
    let sampler =
        strategy.map(|(temperature, top_k, top_p, seed)| Sampler::new(Strategy { temperature, top_k, top_p }, seed));
    Decoding { sampler, end_ids: narrow(end_ids) }
}

/// Ids as a session takes them; one that does not fit becomes the largest, which no vocabulary has.
fn narrow(token_ids: &[i64]) -> Vec<u32> {
    token_ids.iter().map(|id| u32::try_from(*id).unwrap_or(u32::MAX)).collect()
}

fn raw<'py>(py: Python<'py>, values: &[f32]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, size_of_val(values), |bytes| {
        for (bytes, value) in bytes.chunks_exact_mut(size_of::<f32>()).zip(values) {
            bytes.copy_from_slice(&value.to_ne_bytes());
        }
        Ok(())
    })
}

fn values(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.chunks_exact(size_of::<f32>());
    values.map(|value| f32::from_ne_bytes(value.try_into().expect("four bytes"))).collect()
}
