//! Threads that share the chunks of one task at a time and cost nothing while others need the cores.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long an idle thread spins before it parks: longer than the serial gaps between two layers' products, far shorter
/// than a scheduler's time slice, so that a busy neighbour costs a share of the cores and not a slice per product.
const SPIN: Duration = Duration::from_micros(20);

/// Chunks of one task at most, so that count, next chunk and task number fit one atomic word.
const MAX_CHUNKS: usize = (1 << 20) - 1;

type Task = dyn Fn(usize) + Sync;

struct Worker {
    parked: AtomicBool,
    thread: Mutex<Option<Thread>>,
}

/// `word`: task number (24 bits) | chunks (20) | next chunk (20). One compare-and-swap claims a chunk of the task that the
/// word names; a task can't end while a claimed chunk is unfinished, so whoever claimed may read `task`.
struct Shared {
    word: AtomicU64,
    task: UnsafeCell<Option<&'static Task>>,
    finished: AtomicUsize,
    caller_parked: AtomicBool,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    workers: Vec<Worker>,
}

// SAFETY: `task` is written by the one caller (`Pool::busy`) before the word that publishes it, and read only between the
// claim and the completion of a chunk, while the caller waits.
unsafe impl Sync for Shared {}
unsafe impl Send for Shared {}

fn unpack(word: u64) -> (usize, usize) {
    (((word >> 20) & MAX_CHUNKS as u64) as usize, (word & MAX_CHUNKS as u64) as usize)
}

impl Shared {
    /// Works off chunks until none is left to claim.
    fn work(&self) {
        loop {
            let word = self.word.load(Ordering::Acquire);
            let (chunks, next) = unpack(word);
            if next >= chunks {
                return;
            }
            if self.word.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: the claim succeeded, so this task is the current one and the caller waits for this chunk.
            let task = unsafe { (*self.task.get()).expect("a published task") };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(next))) {
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
            }
            let last = self.finished.fetch_add(1, Ordering::SeqCst) + 1 == chunks;
            if last
                && self.caller_parked.load(Ordering::SeqCst)
                && let Some(caller) = self.caller.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            {
                caller.unpark();
            }
        }
    }

    fn serve(&self, index: usize) {
        let me = &self.workers[index];
        loop {
            self.work();
            if self.spin(|| self.has_work() || self.stop.load(Ordering::Relaxed)) {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                continue;
            }
            me.parked.store(true, Ordering::SeqCst);
            while me.parked.load(Ordering::SeqCst) && !self.has_work() && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            me.parked.store(false, Ordering::SeqCst);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    fn has_work(&self) -> bool {
        let (chunks, next) = unpack(self.word.load(Ordering::SeqCst));
        next < chunks
    }

    /// Whether `ready` came true within `SPIN`.
    fn spin(&self, ready: impl Fn() -> bool) -> bool {
        let mut start = None;
        loop {
            for _ in 0..64 {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.get_or_insert_with(Instant::now).elapsed() > SPIN {
                return false;
            }
        }
    }

    fn wake(&self, at_most: usize) {
        let mut left = at_most;
        for worker in &self.workers {
            if left == 0 {
                return;
            }
            left -= 1;
            if worker.parked.swap(false, Ordering::SeqCst)
                && let Some(thread) = worker.thread.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            {
                thread.unpark();
            }
        }
    }
}

/// A fixed number of threads, the caller's among them, that work off the chunks of one task at a time.
pub struct Pool {
    shared: Arc<Shared>,
    busy: AtomicBool,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads: the caller's own and `threads - 1` of its own (0 counts as 1).
    pub fn new(threads: usize) -> Pool {
        let others = threads.max(1) - 1;
        let worker = || Worker { parked: AtomicBool::new(false), thread: Mutex::new(None) };
        let shared = Arc::new(Shared {
            word: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            finished: AtomicUsize::new(0),
            caller_parked: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            workers: (0..others).map(|_| worker()).collect(),
        });
        let mut handles = Vec::new();
        for index in 0..others {
            let shared_there = Arc::clone(&shared);
            let named = std::thread::Builder::new().name(format!("cpu_kernels-{}", index + 1));
            // Fewer threads than asked for is slower, and still right.
            let Ok(handle) = named.spawn(move || shared_there.serve(index)) else { break };
            *shared.workers[index].thread.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(handle.thread().clone());
            handles.push(handle);
        }
        Pool { shared, busy: AtomicBool::new(false), threads: handles }
    }

    /// Threads that work on a task, the caller's among them.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `f(0) … f(chunks - 1)`, each once, on this thread and the pool's; returns when all have returned.
    ///
    /// Called from inside a task, or while another thread's task is running, it does all chunks on this thread.
    ///
    /// # Panics
    /// With the first panic of a chunk, after all chunks have ended.
    pub fn run(&self, chunks: usize, f: &(dyn Fn(usize) + Sync)) {
        if chunks <= 1 || self.threads.is_empty() || self.busy.swap(true, Ordering::Acquire) {
            return (0..chunks).for_each(f);
        }
        let mut first = 0;
        while first < chunks {
            let part = (chunks - first).min(MAX_CHUNKS);
            self.run_part(part, &|chunk| f(first + chunk));
            first += part;
        }
        self.busy.store(false, Ordering::Release);
        let payload = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
    }

    fn run_part(&self, chunks: usize, f: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        // SAFETY: no task is running (`busy`); the borrow outlives its use, as this function waits for every chunk.
        unsafe { *shared.task.get() = Some(std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(f)) };
        shared.finished.store(0, Ordering::Relaxed);
        let number = (shared.word.load(Ordering::Relaxed) >> 40).wrapping_add(1) & 0xff_ffff;
        shared.word.store((number << 40) | ((chunks as u64) << 20), Ordering::SeqCst);
        shared.wake(chunks - 1);
        shared.work();
        let all = || shared.finished.load(Ordering::SeqCst) == chunks;
        if !shared.spin(all) {
            *shared.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
            shared.caller_parked.store(true, Ordering::SeqCst);
            while !all() {
                std::thread::park();
            }
            shared.caller_parked.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for handle in self.threads.drain(..) {
            handle.thread().unpark();
            let _ = handle.join();
        }
    }
}
