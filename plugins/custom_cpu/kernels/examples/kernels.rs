//! Speed of the products beside what the machine can do in the same second: bytes read for one row, operations for many.
//!
//! `cargo run --release --example kernels -- [threads] [smollm2|llama-1b|cached|attention] [format …]`

use std::time::Instant;

use cpu_kernels::{
    Clock, Format, InstructionSet, KvLayout, KvType, Matrix, PAGE_TOKENS, Pool, Span, attention, integer_peak,
    matmul_many, read_bandwidth,
};

/// (columns, rows of the matrices that share activations, layers)
type Shape = (usize, &'static [usize], usize);

const SMOLLM2: &[Shape] =
    &[(576, &[576, 192, 192], 30), (576, &[576], 30), (576, &[1536, 1536], 30), (1536, &[576], 30), (576, &[49152], 1)];
const LLAMA_1B: &[Shape] = &[
    (2048, &[2048, 512, 512], 4),
    (2048, &[2048], 4),
    (2048, &[8192, 8192], 4),
    (8192, &[2048], 4),
    (2048, &[128_256], 1),
];

/// One matrix that stays in a second-level cache: what is left is arithmetic.
const CACHED: &[Shape] = &[(1536, &[192], 1)];

/// Seconds of repetitions for each format and row count, the best of which is printed.
const SECONDS: f64 = 0.3;

/// Blocks with small scales and any quants.
fn bytes(format: Format, count: usize) -> Vec<u8> {
    let (elements, size) = format.block();
    let mut state = 88_172_645_463_325_252u64;
    let mut bytes: Vec<u8> = (0..count / elements * size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    for block in bytes.chunks_exact_mut(size) {
        match format {
            Format::F32 => block.copy_from_slice(&0.01f32.to_le_bytes()),
            Format::F16 | Format::BF16 => block.copy_from_slice(&[0, 0x30]),
            Format::Q6_K => block[208..].copy_from_slice(&[0, 0x10]),
            _ => block[..2].copy_from_slice(&[0, 0x10]),
        }
    }
    bytes
}

/// One layer of SmolLM2's attention: a row behind a long context, and a whole prompt.
fn attend(pool: &Pool) {
    let heads = 9;
    for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let layout = KvLayout { kind, kv_heads: 3, head_dim: 64 };
        let width = heads * layout.head_dim;
        for (start, rows) in [(511usize, 1usize), (4095, 1), (0, 512), (3584, 512)] {
            let mut pages = vec![vec![0u64; layout.page_bytes() / 8]; (start + rows).div_ceil(PAGE_TOKENS)];
            let keys: Vec<f32> = (0..layout.kv_heads * layout.head_dim).map(|i| (i % 17) as f32 * 0.1).collect();
            for position in 0..start + rows {
                let page = pages[position / PAGE_TOKENS].as_mut_ptr().cast();
                // SAFETY: a page of the layout's size, nobody else's.
                unsafe { layout.store(page, position % PAGE_TOKENS, &keys, &keys) };
            }
            let pages: Vec<*const u8> = pages.iter().map(|page| page.as_ptr().cast()).collect();
            let (q, mut out) = (vec![0.1; rows * width], vec![0.0; rows * width]);
            let (begun, mut best) = (Instant::now(), f64::INFINITY);
            while begun.elapsed().as_secs_f64() < SECONDS {
                let clock = Clock::new(pool);
                // SAFETY: the pages outlive the call and hold all positions.
                unsafe { attention(pool, &layout, heads, &[Span { pages: &pages, start, rows }], &q, 0, &mut out) };
                best = best.min(clock.seconds());
            }
            let seen: usize = (start + 1..=start + rows).sum();
            println!(
                "{:>5} rows {rows:>3} behind {start:>4}: {:>8.3} ms, {:>5.1} GMAC/s",
                format!("{kind:?}"),
                best * 1e3,
                (2 * seen * width) as f64 / best / 1e9
            );
        }
    }
}

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.first().map_or(Ok(1), |text| text.parse()).map_err(|_| "expected a number of threads")?;
    let shapes = match arguments.get(1).map(String::as_str) {
        None | Some("smollm2") => SMOLLM2,
        Some("llama-1b") => LLAMA_1B,
        Some("cached") => CACHED,
        Some("attention") => &[],
        Some(other) => return Err(format!("expected smollm2, llama-1b, cached or attention, got {other}")),
    };
    let named = |format: &Format| arguments.len() < 3 || arguments[2..].contains(&format!("{format:?}"));
    let pool = Pool::new(threads);
    let set = InstructionSet::active();
    println!("{} on {threads} threads", set.name());
    if arguments.get(1).is_some_and(|name| name == "attention") {
        attend(&pool);
        return Ok(());
    }
    for format in Format::ALL.into_iter().filter(named) {
        // K-quants need columns in blocks of 256.
        let round = |cols: usize| cols.next_multiple_of(format.block().0);
        let (mut model, mut made) = (Vec::new(), 0.0);
        for (index, (cols, rows, layers)) in shapes.iter().enumerate() {
            for _ in 0..*layers {
                let mut matrix = |rows: &usize| {
                    let bytes = bytes(format, rows * round(*cols));
                    let start = Instant::now();
                    let matrix = Matrix::new(format, *rows, round(*cols), &bytes, &pool);
                    made += start.elapsed().as_secs_f64();
                    matrix
                };
                model.push((index, rows.iter().map(&mut matrix).collect::<Result<Vec<_>, _>>()?));
            }
        }
        let size: usize = model.iter().flat_map(|(_, group)| group).map(Matrix::bytes).sum();
        for n in [1usize, 4, 8, 32, 128, 200, 512] {
            // Limits of the same second: a shared machine's change.
            let bandwidth = read_bandwidth(&pool, 96 << 20, 8)?;
            let peak = integer_peak(format == Format::Q8_0, 100) * threads as f64;
            // Each product's best, summed: on a shared machine a whole pass is never undisturbed.
            let (mut best, mut macs) = (vec![f64::INFINITY; shapes.len()], 0);
            let begun = Instant::now();
            let mut repetition = 0;
            while repetition < 3 || begun.elapsed().as_secs_f64() < SECONDS {
                for (index, group) in &model {
                    // Only the last row of a prompt passes the output layer.
                    let n = if group[0].rows() > 40_000 && n > 32 { 1 } else { n };
                    let x = vec![0.5f32; n * group[0].cols()];
                    let mut ys: Vec<Vec<f32>> = group.iter().map(|w| vec![0.0; n * w.rows()]).collect();
                    let mut parts: Vec<&mut [f32]> = ys.iter_mut().map(Vec::as_mut_slice).collect();
                    let group: Vec<&Matrix> = group.iter().collect();
                    let clock = Clock::new(&pool);
                    matmul_many(&pool, &group, &x, n, &mut parts);
                    best[*index] = best[*index].min(clock.seconds());
                    if repetition == 0 {
                        macs += n * group.iter().map(|w| w.rows() * w.cols()).sum::<usize>();
                    }
                }
                repetition += 1;
            }
            let best: f64 = best.iter().zip(shapes).map(|(best, shape)| best * shape.2 as f64).sum();
            println!(
                "{:>5} n {n:>3}: {:>8.2} ms, {:>5.1} GB/s ({:>3.0} % of {:.1}), {:>6.1} GMAC/s ({:>3.0} % of {:.0})",
                format!("{format:?}"),
                best * 1e3,
                size as f64 / best / 1e9,
                size as f64 / best / bandwidth * 100.0,
                bandwidth / 1e9,
                macs as f64 / best / 1e9,
                macs as f64 / best / peak * 100.0,
                peak / 1e9
            );
        }
        println!("{:>5} {:.1} MB, made in {:.0} ms", format!("{format:?}"), size as f64 / 1e6, made * 1e3);
    }
    Ok(())
}
