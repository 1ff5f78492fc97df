//! The product of two float32 matrices, for the operation "matmul".

use std::sync::Arc;

use cpu_kernels::{Format, Matrix, Pool, matmul};
use enginecmp_shim::{Failure, Result};

/// How to multiply.
pub enum Method {
    /// Dot by dot, in the order of the definition.
    Naive(Vec<f32>),
    /// With the kernels of the model.
    Kernels(Matrix, Arc<Pool>),
}

/// `left` (rows, inner) times a matrix that is given transposed, (columns, inner).
pub struct Product {
    left: Vec<f32>,
    rows: usize,
    inner: usize,
    columns: usize,
    method: Method,
    pub answer: Vec<f32>,
}

impl Product {
    /// Packs the right side; `pool` is None for the naive method.
    pub fn new(left: Vec<f32>, right: Vec<f32>, inner: usize, pool: Option<Arc<Pool>>) -> Result<Self> {
        let (rows, columns) = (left.len() / inner, right.len() / inner);
        let method = match pool {
            None => Method::Naive(right),
            Some(pool) => {
                let bytes: Vec<u8> = right.iter().flat_map(|value| value.to_le_bytes()).collect();
                let matrix = Matrix::new(Format::F32, columns, inner, &bytes, &pool).map_err(Failure::of_library)?;
                Method::Kernels(matrix, pool)
            }
        };
        Ok(Self { answer: vec![0.0; rows * columns], left, rows, inner, columns, method })
    }

    pub fn multiply(&mut self) {
        match &self.method {
            Method::Kernels(matrix, pool) => matmul(pool, matrix, &self.left, self.rows, &mut self.answer),
            Method::Naive(right) => {
                for (row, out) in self.left.chunks_exact(self.inner).zip(self.answer.chunks_exact_mut(self.columns)) {
                    for (column, out) in right.chunks_exact(self.inner).zip(out) {
                        *out = row.iter().zip(column).map(|(a, b)| a * b).sum();
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_methods_multiply() {
        let left = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let right = vec![1.0, 0.0, -1.0, 2.0, 2.0, 2.0];
        for pool in [None, Some(Arc::new(Pool::new(1)))] {
            let mut product = Product::new(left.clone(), right.clone(), 3, pool).unwrap();
            product.multiply();
            assert_eq!(product.answer, [-2.0, 12.0, -2.0, 30.0]);
        }
    }
}
