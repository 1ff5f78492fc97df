//! One of the functions between the products, for the operation "elementwise".

use std::sync::Arc;

use cpu_kernels::{Pool, add, rms_norm, silu_mul, softmax};

use crate::rope::Rope;
use crate::rows::each_row;

pub enum Function {
    /// a + b
    Add,
    /// silu(a) · b
    SiluMul,
    /// a over its root mean square, to which this is added, times the first row of b.
    RmsNorm(f32),
    Softmax,
    /// Heads of this many values turned by angles, those of one row after those of another.
    Rope(Rope, usize, Vec<f32>),
}

impl Function {
    /// Turns heads of `head_dim` values; the first of `rows` rows is at the position `start`.
    pub fn rope(rope: Rope, head_dim: usize, start: usize, rows: usize) -> Self {
        let count = rope.angle_count();
        let mut angles = vec![0.0; rows * count];
        for (row, angles) in angles.chunks_exact_mut(count).enumerate() {
            rope.angles(start + row, angles);
        }
        Self::Rope(rope, head_dim, angles)
    }
}

/// A function and its rows, `length` values each.
pub struct Elements {
    pub function: Function,
    pub pool: Arc<Pool>,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub length: usize,
    /// As long as `a`.
    pub answer: Vec<f32>,
}

impl Elements {
    /// Computes the answer as a pass of the model does: kernels that work in place get a copy.
    pub fn run(&mut self) {
        let Self { function, pool, a, b, length, answer } = self;
        let row = |index: usize| index * *length..(index + 1) * *length;
        match function {
            Function::Add => {
                answer.copy_from_slice(a);
                add(answer, b);
            }
            Function::SiluMul => each_row(pool, answer, *length, &|index, out| {
                out.copy_from_slice(&a[row(index)]);
                silu_mul(out, &b[row(index)]);
            }),
            Function::RmsNorm(epsilon) => each_row(pool, answer, *length, &|index, out| {
                rms_norm(&a[row(index)], &b[..*length], *epsilon, out);
            }),
            Function::Softmax => each_row(pool, answer, *length, &|index, out| {
                out.copy_from_slice(&a[row(index)]);
                softmax(out);
            }),
            Function::Rope(rope, head_dim, angles) => each_row(pool, answer, *length, &|index, out| {
                let count = rope.angle_count();
                out.copy_from_slice(&a[row(index)]);
                rope.turn(out, *head_dim, &angles[index * count..(index + 1) * count]);
            }),
        }
    }
}
