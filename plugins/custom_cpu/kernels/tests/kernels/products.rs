//! Products against sums in double, and against themselves: other row counts, other thread counts, bit by bit.

use crate::common::{Random, dot, on_each_set, rows};
use cpu_kernels::{Format, Matrix, Pool, dequantize, matmul, matmul_many, quantize_rows};

/// (rows, blocks, activation rows): single rows, tails of every register tile, odd counts.
const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 1), (3, 2, 2), (8, 1, 3), (16, 3, 4), (17, 2, 5), (33, 1, 6), (40, 3, 7), (70, 2, 13), (129, 5, 25)];

fn cols(format: Format, blocks: usize) -> usize {
    match format.block().0 {
        1 => blocks * 13 + 3,
        elements => blocks * elements,
    }
}

/// Activations with the sizes that models have: a few a hundred times larger, and rows of zeros.
fn activations(random: &mut Random, n: usize, cols: usize) -> Vec<f32> {
    let mut x = random.floats(n * cols);
    for value in x.iter_mut().step_by(97) {
        *value *= 100.0;
    }
    if n > 2 {
        x[cols..2 * cols].fill(0.0);
    }
    x
}

#[test]
fn test_products_equal_sums_in_double() {
    let pool = Pool::new(2);
    on_each_set(|set| {
        for format in Format::ALL {
            let mut random = Random(17);
            for (count, blocks, n) in SHAPES {
                let cols = cols(format, blocks);
                let bytes = rows(&mut random, format, count, cols);
                let matrix = Matrix::new(format, count, cols, &bytes, &pool).expect("a matrix");
                let x = activations(&mut random, n, cols);
                let mut rounded = x.clone();
                if format.quantized() {
                    quantize_rows(&x, &mut rounded);
                }
                let mut y = vec![f32::NAN; n * count];
                matmul(&pool, &matrix, &x, n, &mut y);
                let mut weights = vec![0.0; cols];
                for row in 0..count {
                    let size = format.row_bytes(cols).expect("whole blocks");
                    dequantize(format, &bytes[row * size..(row + 1) * size], &mut weights);
                    for (a, x) in rounded.chunks_exact(cols).enumerate() {
                        let (sum, magnitude) = dot(&weights, x);
                        let error = (f64::from(y[a * count + row]) - sum).abs();
                        // Rounding of a sum of floats; minima cancel against products up to 63 times as large.
                        assert!(
                            error <= 4e-6 * magnitude * 8.0 + 1e-12,
                            "{} {format:?} {count}x{cols} n {n} row {row} act {a}: {} for {sum} ({error:e} of {magnitude:e})",
                            set.name(),
                            y[a * count + row]
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn test_packed_rows_hold_the_file_values() {
    let pool = Pool::new(2);
    on_each_set(|set| {
        for format in Format::ALL {
            let mut random = Random(5);
            let (count, cols) = (21, cols(format, 3));
            let bytes = rows(&mut random, format, count, cols);
            let matrix = Matrix::new(format, count, cols, &bytes, &pool).expect("a matrix");
            let mut expected = vec![0.0; count * cols];
            dequantize(format, &bytes, &mut expected);
            let mut row = vec![0.0; cols];
            for (index, expected) in expected.chunks_exact(cols).enumerate() {
                matrix.dequantize_row(index, &mut row);
                assert_eq!(row, expected, "{} {format:?} row {index}", set.name());
            }
        }
    });
}

#[test]
fn test_a_row_is_the_same_alone_in_any_company_and_on_any_threads() {
    let pools = [Pool::new(1), Pool::new(2), Pool::new(5)];
    on_each_set(|set| {
        for format in Format::ALL {
            let mut random = Random(23);
            let (count, cols, n) = (77, cols(format, 4), 31);
            let bytes = rows(&mut random, format, count, cols);
            let matrix = Matrix::new(format, count, cols, &bytes, &pools[0]).expect("a matrix");
            let x = activations(&mut random, n, cols);
            let mut alone = vec![0.0; n * count];
            for (x, y) in x.chunks_exact(cols).zip(alone.chunks_exact_mut(count)) {
                matmul(&pools[0], &matrix, x, 1, y);
            }
            for pool in &pools {
                for n in [2, 3, 4, 5, 6, 7, 31] {
                    let mut y = vec![0.0; n * count];
                    matmul(pool, &matrix, &x[..n * cols], n, &mut y);
                    let same = y.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{} {format:?} n {n}, {} threads", set.name(), pool.threads());
                }
            }
        }
    });
}

#[test]
fn test_many_matrices_equal_each_by_itself() {
    let pool = Pool::new(2);
    on_each_set(|_| {
        let mut random = Random(29);
        let (cols, n) = (512, 9);
        let x = activations(&mut random, n, cols);
        let matrices: Vec<Matrix> = [(Format::Q4_K, 50), (Format::Q6_K, 7), (Format::F32, 11), (Format::Q8_0, 64)]
            .into_iter()
            .map(|(format, count)| {
                Matrix::new(format, count, cols, &rows(&mut random, format, count, cols), &pool).expect("a matrix")
            })
            .collect();
        let mut together: Vec<Vec<f32>> = matrices.iter().map(|w| vec![0.0; n * w.rows()]).collect();
        let mut parts: Vec<&mut [f32]> = together.iter_mut().map(Vec::as_mut_slice).collect();
        matmul_many(&pool, &matrices.iter().collect::<Vec<_>>(), &x, n, &mut parts);
        for (matrix, y) in matrices.iter().zip(&together) {
            let mut expected = vec![0.0; y.len()];
            matmul(&pool, matrix, &x, n, &mut expected);
            assert_eq!(*y, expected);
        }
    });
}

#[test]
fn test_nothing_times_nothing_is_zero() {
    let pool = Pool::new(1);
    for format in Format::ALL {
        let empty = Matrix::new(format, 3, 0, &[], &pool).expect("a matrix");
        let mut y = vec![1.0; 6];
        matmul(&pool, &empty, &[], 2, &mut y);
        assert_eq!(y, [0.0; 6]);
        let rowless = Matrix::new(format, 0, 256, &[], &pool).expect("a matrix");
        matmul(&pool, &rowless, &[1.0; 512], 2, &mut []);
    }
}

#[test]
fn test_integer_sums_are_exact_at_the_extremes() {
    let pool = Pool::new(1);
    on_each_set(|set| {
        // All weights and activations at their largest: 8-bit products that overflow 16 bits would show.
        for (format, byte, value) in
            [(Format::Q8_0, 0x80, -128.0), (Format::Q4_1, 0xff, 15.0), (Format::Q5_1, 0xff, 31.0)]
        {
            let (_, size) = format.block();
            let mut block = vec![byte; size];
            block[..2].copy_from_slice(&[0x00, 0x3c]); // 1.0
            if format != Format::Q8_0 {
                block[2..4].copy_from_slice(&[0, 0]);
            }
            let matrix = Matrix::new(format, 9, 32, &block.repeat(9), &pool).expect("a matrix");
            for sign in [1.0, -1.0] {
                let mut y = vec![0.0; 9 * 4];
                matmul(&pool, &matrix, &[127.0 * sign; 32 * 4], 4, &mut y);
                assert_eq!(y, vec![127.0 * sign * value * 32.0; 36], "{} {format:?}", set.name());
            }
        }
    });
}

#[test]
fn test_sizes_that_do_not_match_are_errors() {
    let pool = Pool::new(1);
    let message = |format, count, cols, len: usize| {
        Matrix::new(format, count, cols, &vec![0; len], &pool).err().expect("an error")
    };
    assert_eq!(
        message(Format::Q4_K, 2, 288, 324),
        "a 2 x 288 matrix of Q4_K: expected columns in blocks of 256, got 288"
    );
    assert_eq!(
        message(Format::Q8_0, 2, 64, 135),
        "a 2 x 64 matrix of Q8_0: expected 2 rows of 68 bytes, got 135 bytes"
    );
    assert!(message(Format::F32, usize::MAX, 4, 16).contains("expected"));
}
