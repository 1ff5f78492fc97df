//! Products of activations with one matrix or several, shared out among a pool's threads.

use crate::activations::{Groups, Kind, prepare};
use crate::matrix::{Matrix, with_scratch};
use crate::pool::Pool;
use crate::product::Stretch;
use crate::shared::SharedMut;

/// Weights that a chunk multiplies where few rows pass by: long enough to hide the claim, short enough to share evenly.
const STREAM: usize = 48 << 10;
/// Weights and activations of a chunk where many rows pass by; together they stay in a second-level cache.
const WEIGHTS: usize = 96 << 10;
const ACTIVATIONS: usize = 160 << 10;
/// Chunks for each thread at least, where there are that many.
const SHARES: usize = 4;

/// y (n, rows) = x (n, cols) · wᵀ
///
/// Activations are rounded to 8 bits once a row where the weights are quantized; float weights take them as they are.
/// A row's results don't depend on the other rows, on `n` or on the number of threads, bit by bit.
///
/// # Panics
/// Where `x` or `y` has another size.
pub fn matmul(pool: &Pool, w: &Matrix, x: &[f32], n: usize, y: &mut [f32]) {
    matmul_many(pool, &[w], x, n, &mut [y]);
}

/// Several matrices times the same activations: prepared once, multiplied in one parallel region.
///
/// # Panics
/// Where sizes differ, or the matrices were packed for different instruction sets.
pub fn matmul_many(pool: &Pool, ws: &[&Matrix], x: &[f32], n: usize, ys: &mut [&mut [f32]]) {
    let Some(first) = ws.first() else { return };
    assert!(ws.len() == ys.len(), "expected as many results as matrices ({}), got {}", ws.len(), ys.len());
    let (cols, set) = (first.cols, first.set);
    assert!(x.len() == n * cols, "expected {n} rows of {cols} activations, got {} values", x.len());
    for (w, y) in ws.iter().zip(ys.iter()) {
        assert!(w.cols == cols, "expected matrices of {cols} columns, got one of {}", w.cols);
        assert!(w.set == set, "expected matrices packed for {}, got one for {}", set.name(), w.set.name());
        assert!(y.len() == n * w.rows, "expected room for {n} rows of {}, got {} values", w.rows, y.len());
    }
    if n == 0 || cols == 0 {
        return ys.iter_mut().for_each(|y| y.fill(0.0));
    }
    // Each kind of activations that a matrix asks for, and where it lies in the scratch memory.
    let mut size = 0;
    let prepared = Kind::ALL.map(|kind| {
        let groups = Groups::new(kind, set, n, cols);
        let start = size;
        let wanted = ws.iter().any(|w| Kind::of(w.format) == kind);
        size += if wanted { groups.bytes().next_multiple_of(64) } else { 0 };
        (kind, groups, start, wanted)
    });
    with_scratch(size, |scratch| {
        for (kind, groups, start, wanted) in prepared {
            if wanted {
                prepare(set, pool, groups, kind, x, &mut scratch[start..start + groups.bytes()]);
            }
        }
        let scratch = &*scratch;
        let plan = |w: &&Matrix| {
            let (_, groups, start, _) = prepared[Kind::of(w.format) as usize];
            (groups, scratch[start..].as_ptr())
        };
        let shares = SHARES * pool.threads();
        let chunks: Vec<Chunks> = ws.iter().map(|w| Chunks::new(w, plan(w).0, shares.div_ceil(ws.len()))).collect();
        let sources: Vec<Source> = ws.iter().map(|w| Source(plan(w).1)).collect();
        let results: Vec<SharedMut<f32>> = ys.iter_mut().map(|y| SharedMut::new(y)).collect();
        let total = chunks.iter().map(Chunks::count).sum();
        pool.run(total, &|chunk| {
            let mut chunk = chunk;
            let mut which = 0;
            while chunk >= chunks[which].count() {
                chunk -= chunks[which].count();
                which += 1;
            }
            let (w, plan) = (ws[which], &chunks[which]);
            let (tile, group) = (chunk / plan.across() * plan.tiles, chunk % plan.across() * plan.groups);
            let stretch = Stretch {
                format: w.format,
                planes: &w.planes,
                weights: w.weights().as_ptr(),
                rows: w.rows,
                cols,
                tiles: tile..w.tiles().min(tile + plan.tiles),
                x: sources[which].0,
                all: plan.all,
                groups: group..plan.all.count().min(group + plan.groups),
                y: results[which],
            };
            // SAFETY: packed and prepared for `set`, which was active and so is to be had; both outlive the region.
            unsafe { stretch.multiply(set) };
        });
    });
}

/// Prepared activations, read by all threads.
struct Source(*const u8);
// SAFETY: only read while they are shared.
unsafe impl Sync for Source {}

/// How a matrix's tiles and the groups of activations are cut into chunks.
struct Chunks {
    all: Groups,
    matrix_tiles: usize,
    tiles: usize,
    groups: usize,
}

impl Chunks {
    fn new(w: &Matrix, all: Groups, shares: usize) -> Chunks {
        let tile = w.planes.tile.max(1);
        let matrix_tiles = w.tiles();
        let few = all.count() <= 1;
        // Tiles that are multiplied together.
        let unit = if few { 4 } else { 2 };
        let mut groups = if few { 1 } else { (ACTIVATIONS / (all.acts * all.row_bytes).max(1)).clamp(1, all.count()) };
        let most = matrix_tiles.max(1);
        let mut tiles = (if few { STREAM } else { WEIGHTS } / tile).next_multiple_of(unit).clamp(1, most);
        let count = |tiles: usize, groups: usize| matrix_tiles.div_ceil(tiles) * all.count().div_ceil(groups);
        while count(tiles, groups) < shares && (tiles > unit || groups > 1) {
            if tiles > unit {
                tiles = tiles.div_ceil(2).next_multiple_of(unit);
            } else {
                groups = groups.div_ceil(2);
            }
        }
        Chunks { all, matrix_tiles, tiles, groups }
    }

    /// Chunks side by side: of activations.
    fn across(&self) -> usize {
        self.all.count().div_ceil(self.groups)
    }

    fn count(&self) -> usize {
        self.matrix_tiles.div_ceil(self.tiles) * self.across()
    }
}
