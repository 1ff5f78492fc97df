//! Work on the rows of a matrix, row by row and on all threads: what a row becomes depends on nothing else.

use cpu_kernels::Pool;

/// Rows that one thread takes at a time.
const ROWS: usize = 8;

/// Calls `work` with every index below `count`, some at a time on each thread.
pub fn each(pool: &Pool, count: usize, work: &(dyn Fn(usize) + Sync)) {
    if count <= ROWS {
        (0..count).for_each(work);
        return;
    }
    pool.run(count.div_ceil(ROWS), &|chunk| (chunk * ROWS..count.min((chunk + 1) * ROWS)).for_each(work));
}

/// Calls `work` with the index and the values of every row of `data`, each `width` long.
pub fn each_row(pool: &Pool, data: &mut [f32], width: usize, work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let (rows, start) = (data.len() / width, Start(data.as_mut_ptr()));
    each(pool, rows, &|index| {
        let start = &start;
        // SAFETY: inside `data`, and every index is called once.
        work(index, unsafe { std::slice::from_raw_parts_mut(start.0.add(index * width), width) });
    });
}

struct Start(*mut f32);
// SAFETY: threads write to rows of their own.
unsafe impl Sync for Start {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once() {
        let pool = Pool::new(2);
        for rows in [1, 8, 9, 100] {
            let mut data = vec![0.0; rows * 3];
            each_row(&pool, &mut data, 3, &|index, row| row.iter_mut().for_each(|value| *value += index as f32 + 1.0));
            let wanted: Vec<f32> = (0..rows).flat_map(|index| [index as f32 + 1.0; 3]).collect();
            assert_eq!(data, wanted);
        }
    }
}
