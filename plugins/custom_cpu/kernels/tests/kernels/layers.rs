//! The small layers, rotary embedding and 16-bit floats against double, on every length of tail.

use crate::common::{Random, on_each_set};
use cpu_kernels::{add, argmax, bf16_to_f32, f16_to_f32, f32_to_f16, gelu, layer_norm, rms_norm, silu_mul, softmax};

const LENGTHS: [usize; 8] = [1, 2, 7, 15, 16, 33, 576, 1537];

#[track_caller]
fn close(what: &str, got: &[f32], expected: impl Iterator<Item = f64>, relative: f64) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= relative * expected.abs() + 1e-9, "{what} [{i}]: {got} for {expected}");
    }
}

fn doubles(values: &[f32]) -> impl Iterator<Item = f64> + Clone {
    values.iter().map(|value| f64::from(*value))
}

#[test]
fn test_norms_equal_double() {
    on_each_set(|set| {
        let mut random = Random(41);
        for len in LENGTHS {
            let (x, weight, bias) = (random.floats(len), random.floats(len), random.floats(len));
            let mut out = vec![0.0; len];
            let (mean, count) = (doubles(&x).sum::<f64>() / len as f64, len as f64);

            rms_norm(&x, &weight, 1e-5, &mut out);
            let scale = 1.0 / (doubles(&x).map(|v| v * v).sum::<f64>() / count + 1e-5).sqrt();
            let expected = doubles(&x).zip(doubles(&weight)).map(|(x, w)| x * scale * w);
            close(&format!("{} rms_norm {len}", set.name()), &out, expected, 1e-6);

            layer_norm(&x, &weight, &bias, 1e-5, &mut out);
            let scale = 1.0 / (doubles(&x).map(|v| (v - mean) * (v - mean)).sum::<f64>() / count + 1e-5).sqrt();
            for (i, out) in out.iter().enumerate() {
                let product = (f64::from(x[i]) - mean) * scale * f64::from(weight[i]);
                let error = (f64::from(*out) - product - f64::from(bias[i])).abs();
                assert!(error < 2e-6, "{} layer_norm {len} [{i}]: off by {error:e}", set.name());
            }
        }
    });
}

#[test]
fn test_softmax_and_gates_equal_double() {
    on_each_set(|set| {
        let mut random = Random(43);
        for len in LENGTHS {
            for size in [1.0, 30.0, 200.0] {
                let x: Vec<f32> = random.floats(len).iter().map(|value| value * size).collect();
                let up = random.floats(len);

                let mut out = x.clone();
                softmax(&mut out);
                let most = doubles(&x).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = doubles(&x).map(|v| (v - most).exp()).sum();
                let expected = doubles(&x).map(|v| (v - most).exp() / total);
                close(&format!("{} softmax {len}", set.name()), &out, expected, 2e-6);

                let mut out = x.clone();
                silu_mul(&mut out, &up);
                let expected = doubles(&x).zip(doubles(&up)).map(|(x, up)| x / (1.0 + (-x).exp()) * up);
                close(&format!("{} silu_mul {len}", set.name()), &out, expected, 2e-6);

                let mut out = x.clone();
                gelu(&mut out);
                let expected = doubles(&x).map(|x| {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                    x * (1.0 / (1.0 + (-2.0 * u).exp()))
                });
                close(&format!("{} gelu {len}", set.name()), &out, expected, 2e-5);

                let mut out = x.clone();
                add(&mut out, &up);
                assert!(out.iter().zip(x.iter().zip(&up)).all(|(out, (x, up))| *out == x + up));
            }
        }
    });
}

#[test]
fn test_what_is_no_number_stays_none() {
    on_each_set(|set| {
        for at in [0, 7, 20, 32] {
            let mut x = [0.5; 33];
            x[at] = f32::NAN;
            let (mut gate, mut curved, mut shares) = (x, x, x);
            silu_mul(&mut gate, &[1.0; 33]);
            gelu(&mut curved);
            softmax(&mut shares);
            for i in 0..33 {
                assert_eq!((gate[i].is_nan(), curved[i].is_nan()), (i == at, i == at), "{} {at} {i}", set.name());
            }
            assert!(shares.iter().all(|share| share.is_nan()), "{} {at}", set.name());
        }
    });
}

#[test]
fn test_argmax_is_the_first_of_equal_ones() {
    let mut random = Random(47);
    for len in [1, 2, 1023, 1024, 1025, 5000] {
        let values = random.floats(len);
        let most = values.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
        assert_eq!(Some(argmax(&values)), values.iter().position(|value| *value == most));
        let mut tied = values.clone();
        tied[len / 2] = 5.0;
        tied[len - 1] = 5.0;
        assert_eq!(argmax(&tied), len / 2);
    }
    assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN, 2.0]), 3);
    assert_eq!(argmax(&[f32::NAN; 3]), 0);
    assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), 0);
}

#[test]
fn test_sixteen_bit_floats_keep_all_values_and_round_to_even() {
    for bits in 0..=u16::MAX {
        let value = f16_to_f32(bits);
        if !value.is_nan() {
            assert_eq!(f32_to_f16(value), bits, "{value}");
        }
        assert_eq!(bf16_to_f32(bits).to_bits(), u32::from(bits) << 16);
    }
    // IEEE 754-2019, table 3.5: largest finite 65504, smallest normal 2^-14, smallest subnormal 2^-24.
    let known: [(f32, u16); 10] = [
        (1.0, 0x3c00),
        (-2.0, 0xc000),
        (65504.0, 0x7bff),
        (65519.0, 0x7bff),
        (65520.0, 0x7c00),
        (6.103_515_6e-5, 0x0400),
        (5.960_464_5e-8, 0x0001),
        (2.980_232_2e-8, 0x0000),
        (1.000_488_3, 0x3c00),
        (1.001_464_8, 0x3c02),
    ];
    for (value, bits) in known {
        assert_eq!(f32_to_f16(value), bits, "{value}");
    }
    assert!(f16_to_f32(f32_to_f16(f32::NAN)).is_nan());
    assert_eq!(f16_to_f32(0xfc00), f32::NEG_INFINITY);
}
