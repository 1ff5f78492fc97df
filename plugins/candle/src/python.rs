//! The extension module `enginecmp_candle._shim`.

use std::path::PathBuf;

use enginecmp_shim::python::{PySession, exception};
use pyo3::prelude::*;

use crate::session::{self, Options};

const ENGINE: &str = "candle";
const COMPILED_FOR: &str = enginecmp_shim::compiled_for!("enginecmp-candle");

#[pyfunction]
fn load(
    py: Python<'_>,
    path: PathBuf,
    device: String,
    context_tokens: usize,
    prompt_chunk: usize,
) -> PyResult<PySession> {
    let options = Options { device, context_tokens, prompt_chunk };
    let loaded = py.detach(|| session::load(&path, &options));
    loaded.map(|session| PySession::new(ENGINE, session)).map_err(|failure| exception(ENGINE, &failure))
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

#[pymodule]
fn _shim(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("COMPILED_FOR", COMPILED_FOR)?;
    module.add_class::<PySession>()?;
    module.add_function(wrap_pyfunction!(load, module)?)?;
    module.add_function(wrap_pyfunction!(features, module)?)?;
    Ok(())
}
