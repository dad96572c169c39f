//! What a link carries and how long it takes, by what its requests do.

use std::time::Duration;

use crate::sync::time::Instant;

/// Figures that are kept of each kind, the latest: the best of them counts. A busy link gives one of
/// bandwidth every [`SLICE`], so that what changed is known after a second.
const KEPT: usize = 16;

/// How long bytes come before their number says something about the link: longer than what lies in the
/// sockets' buffers takes to be read.
const SLICE: Duration = Duration::from_millis(50);

/// What a link is thought to be before anything was measured, bytes: 200 Mbit/s at 10 ms.
const PRODUCT_FIRST: u64 = 256 << 10;

/// Least bytes on their way: what a socket's buffer takes at once. With less, a fast link rests while the
/// next request is written.
const PRODUCT_MIN: u64 = 64 << 10;

/// Most bytes: 1 Gbit/s at 64 ms, and what may be in memory of them.
const PRODUCT_MAX: u64 = 8 << 20;

/// What a start is known to read may wait at the narrowest place of a link for so long. Registries take some
/// milliseconds until they answer, by turns more and less: without bytes that wait, the link rests meanwhile. A reader
/// of something else waits for as much longer.
const WAITS: Duration = Duration::from_millis(20);

/// How much of what a start is known to read is on its way before anything was measured, bytes: 200 Mbit/s at 40 ms.
pub(super) const START_FIRST: u64 = 1 << 20;

/// Least bytes of that: a request of two chunks while the next one is written.
const START_MIN: u64 = 128 << 10;

/// The best of the latest figures.
#[derive(Debug)]
struct Latest<T>([Option<T>; KEPT], usize);

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self([const { None }; KEPT], 0)
    }
}

impl<T: Copy> Latest<T> {
    fn add(&mut self, figure: T) {
        self.0[self.1 % KEPT] = Some(figure);
        self.1 += 1;
    }

    fn all(&self) -> impl Iterator<Item = T> {
        self.0.iter().flatten().copied()
    }
}

/// The figures of one link.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    /// From a request to the first byte of its answer.
    round_trips: Latest<Duration>,
    /// Bytes in a second.
    rates: Latest<u64>,
    /// Requests on their way.
    asked: usize,
    /// Since when, without a gap, and how many bytes.
    slice: Option<(Instant, u64)>,
}

impl Gauge {
    pub(super) const fn begin(&mut self) {
        self.asked += 1;
    }

    pub(super) const fn end(&mut self) {
        self.asked = self.asked.saturating_sub(1);
        if self.asked == 0 {
            // Nothing was asked for: that is no figure of the link.
            self.slice = None;
        }
    }

    /// Notes that an answer began after `waited`.
    pub(super) fn answered(&mut self, waited: Duration) {
        self.round_trips.add(waited);
    }

    /// Notes that `bytes` came now.
    pub(super) fn arrived(&mut self, bytes: u64) {
        let now = Instant::now();
        let Some((begun, sum)) = &mut self.slice else {
            // What it waited for before is no part of the time they took.
            self.slice = Some((now, 0));
            return;
        };
        *sum += bytes;
        let took = now - *begun;
        if took >= SLICE {
            let rate = u128::from(*sum) * 1_000_000 / took.as_micros();
            self.rates.add(u64::try_from(rate).unwrap_or(u64::MAX));
            self.slice = Some((now, 0));
        }
    }

    /// Bandwidth by round trip, bytes.
    pub(super) fn product(&self) -> u64 {
        let Some((rate, round_trip)) = self.best() else {
            return PRODUCT_FIRST;
        };
        bytes_in(rate, round_trip).clamp(PRODUCT_MIN, PRODUCT_MAX)
    }

    /// The same as it was measured, if it was.
    pub(super) fn measured_product(&self) -> Option<u64> {
        let (rate, round_trip) = self.best()?;
        Some(bytes_in(rate, round_trip).min(PRODUCT_MAX))
    }

    /// What of a start's known reads is on its way at a time, bytes: twice the product, since a link that is asked for no
    /// more than it was seen to carry is never seen to carry more, and what may wait.
    pub(super) fn start_product(&self) -> u64 {
        let Some((rate, round_trip)) = self.best() else {
            return START_FIRST;
        };
        bytes_in(rate, 2 * round_trip + WAITS).clamp(START_MIN, PRODUCT_MAX)
    }

    /// Bytes of one request for what a start is known to read: what comes while something may wait.
    pub(super) fn start_part(&self) -> u64 {
        let Some((rate, _)) = self.best() else {
            return START_FIRST / 2;
        };
        bytes_in(rate, WAITS).clamp(START_MIN, PRODUCT_MAX)
    }

    /// Bytes in a second, and the round trip.
    fn best(&self) -> Option<(u64, Duration)> {
        self.rates.all().max().zip(self.round_trips.all().min())
    }
}

fn bytes_in(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_micros() / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Promise: the product is that of the link, whatever lies between its requests.
    #[tokio::test(start_paused = true)]
    async fn bandwidth_and_round_trip_are_those_of_the_busy_link() {
        let mut gauge = Gauge::default();
        assert_eq!(gauge.product(), PRODUCT_FIRST, "nothing is known");
        for _ in 0..3 {
            gauge.begin();
            tokio::time::advance(Duration::from_millis(20)).await;
            gauge.answered(Duration::from_millis(20));
            for _ in 0..100 {
                gauge.arrived(25_000);
                tokio::time::advance(Duration::from_millis(1)).await;
            }
            gauge.end();
            // Nobody asks for anything.
            tokio::time::advance(Duration::from_secs(3)).await;
        }
        let product = gauge.product();
        assert!((480_000..=520_000).contains(&product), "{product}");
    }

    /// Promise: a link that became slower is known as such after a second of use.
    #[tokio::test(start_paused = true)]
    async fn what_the_link_was_is_forgotten() {
        let mut gauge = Gauge::default();
        gauge.begin();
        gauge.answered(Duration::from_millis(100));
        for rate in [20_000, 2_000] {
            for _ in 0..1_000 {
                gauge.arrived(rate);
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        }
        let product = gauge.product();
        assert!((190_000..=210_000).contains(&product), "{product}");
    }
}
