//! The pool: every chunk once, panics passed on, tasks inside tasks.

use std::sync::atomic::{AtomicUsize, Ordering};

use cpu_kernels::Pool;

#[test]
fn test_every_chunk_runs_once() {
    for threads in [0, 1, 2, 3, 8] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for chunks in (0..200).chain([5000]) {
            let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(chunks, &|chunk| {
                counts[chunk].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts.iter().all(|count| count.load(Ordering::Relaxed) == 1),
                "{threads} threads, {chunks} chunks"
            );
        }
    }
}

#[test]
fn test_parked_threads_wake() {
    let pool = Pool::new(3);
    for _ in 0..20 {
        std::thread::sleep(std::time::Duration::from_millis(1));
        let count = AtomicUsize::new(0);
        pool.run(7, &|_| {
            std::thread::sleep(std::time::Duration::from_micros(300));
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 7);
    }
}

#[test]
fn test_a_task_inside_a_task_and_tasks_of_two_threads_finish() {
    let pool = Pool::new(3);
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(4, &|_| {
                        pool.run(5, &|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(count.load(Ordering::Relaxed), 2 * 200 * 4 * 5);
}

#[test]
fn test_a_panic_is_passed_on_after_all_chunks_and_the_pool_goes_on() {
    let pool = Pool::new(2);
    let count = AtomicUsize::new(0);
    let run = || {
        pool.run(50, &|chunk| {
            count.fetch_add(1, Ordering::Relaxed);
            assert!(chunk != 13, "chunk thirteen");
        });
    };
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).expect_err("a panic");
    let message = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    assert_eq!(message, Some("chunk thirteen"));
    assert_eq!(count.load(Ordering::Relaxed), 50);
    pool.run(10, &|_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(count.load(Ordering::Relaxed), 60);
}
