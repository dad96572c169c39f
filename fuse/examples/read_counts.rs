//! What counting costs a read that the store answers: two looks at the clock and four additions.
//!
//! `cargo run --release -p larder-fuse --example read_counts`

use std::hint::black_box;
use std::time::{Duration, Instant};

use larder_fuse::{Count, Durations};

/// Reads of one batch: short enough that some batches are not interrupted on a busy machine.
const READS: u32 = 10_000;

/// Batches, of which the quickest counts.
const BATCHES: u32 = 2_000;

fn main() {
    let (durations, bytes) = (Durations::default(), Count::default());
    let whole = per_read(|| {
        let began = Instant::now();
        durations.add(black_box(began).elapsed());
        bytes.add(black_box(4096));
    });
    let clock = per_read(|| {
        let began = Instant::now();
        black_box(black_box(began).elapsed());
    });
    let fixed = Duration::from_micros(20);
    let adding = per_read(|| {
        durations.add(black_box(fixed));
        bytes.add(black_box(4096));
    });
    println!("{whole:.1} ns per read: the clock {clock:.1} ns, the additions {adding:.1} ns");
}

/// Nanoseconds for each of many times.
fn per_read(what: impl Fn()) -> f64 {
    let batch = || {
        let began = Instant::now();
        for _ in 0..READS {
            what();
        }
        began.elapsed().as_secs_f64() * 1e9 / f64::from(READS)
    };
    (0..BATCHES).map(|_| batch()).fold(f64::MAX, f64::min)
}
