//! The clock that Python's `time.perf_counter_ns` reads, so that stamps of both sides can be compared.

/// Nanoseconds since an arbitrary start, the same one for the whole machine.
pub fn now_ns() -> u64 {
    // Python: CLOCK_MONOTONIC on Linux, mach_absolute_time on macOS, which is CLOCK_UPTIME_RAW in nanoseconds.
    #[cfg(target_os = "macos")]
    const CLOCK: libc::clockid_t = libc::CLOCK_UPTIME_RAW;
    #[cfg(not(target_os = "macos"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;

    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a local of the right type; the call writes nothing else.
    let code = unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
    assert_eq!(code, 0, "the monotonic clock of this system does not answer");
    (time.tv_sec as u64) * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::now_ns;

    #[test]
    fn stamps_are_nanoseconds_of_real_time_and_never_fall() {
        let before = now_ns();
        let start = std::time::Instant::now(); // later: what it says to have passed has passed for the stamps too
        let mut last = before;
        while start.elapsed().as_millis() < 20 {
            let next = now_ns();
            assert!(next >= last);
            last = next;
        }
        assert!(now_ns() - before >= 20_000_000);
    }
}
