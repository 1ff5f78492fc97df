//! What the tests share: seeded numbers, random rows of every format, each instruction set in turn.

use std::sync::{Mutex, PoisonError};

use cpu_kernels::{Format, InstructionSet, VARIABLE, f32_to_f16};

/// xorshift64*, Vigna 2016.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.unit()).collect()
    }
}

/// Where a block keeps its f16 numbers.
fn halves(format: Format) -> &'static [usize] {
    match format {
        Format::F32 | Format::BF16 => &[],
        Format::F16 | Format::Q8_0 | Format::Q4_0 | Format::Q5_0 => &[0],
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q6_K => &[208],
    }
}

/// Rows of random blocks: every bit pattern of quants and small scales, and finite floats.
pub fn rows(random: &mut Random, format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let (elements, size) = format.block();
    let mut bytes = Vec::new();
    for _ in 0..rows * cols / elements {
        let mut block: Vec<u8> = (0..size).map(|_| random.bits() as u8).collect();
        match format {
            Format::F32 => block.copy_from_slice(&random.unit().to_le_bytes()),
            Format::BF16 => block.copy_from_slice(&random.unit().to_le_bytes()[2..]),
            _ => {}
        }
        for at in halves(format) {
            block[*at..at + 2].copy_from_slice(&f32_to_f16(random.unit() * 0.1).to_le_bytes());
        }
        bytes.extend(block);
    }
    bytes
}

/// Runs `test` on every instruction set that this CPU has (the one that the environment names, where it names one), and
/// says which it hasn't. One at a time: the choice is global.
pub fn on_each_set(test: impl Fn(InstructionSet)) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = std::env::var(VARIABLE).ok();
    for set in InstructionSet::ALL {
        if asked.as_ref().is_some_and(|name| name != set.name()) {
            eprintln!("not run: {}, which was not asked for", set.name());
        } else if set.available() {
            InstructionSet::select(Some(set.name())).expect("available");
            test(*set);
        } else {
            eprintln!("not run: {}, which this CPU doesn't have", set.name());
        }
    }
    InstructionSet::select(None).expect("the best");
}

/// Σ a·b in double, and Σ |a·b|.
pub fn dot(a: &[f32], b: &[f32]) -> (f64, f64) {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
}
