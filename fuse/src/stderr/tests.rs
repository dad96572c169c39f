//! Readers that do not read.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::*;

/// For a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(30);

static LOST: AtomicU64 = AtomicU64::new(0);

fn count(lost: u64) {
    LOST.fetch_add(lost, Ordering::SeqCst);
}

fn lines(out: impl Into<OwnedFd>, tell: fn(u64)) -> &'static Lines<OwnedFd> {
    Box::leak(Box::new(Lines::new(out.into(), tell)))
}

/// A line of a kilobyte, with its number.
fn line(number: usize) -> Vec<u8> {
    format!("{number:>1023}\n").into_bytes()
}

/// Pushes twice what is kept while nobody reads, and then reads it.
fn stall(out: impl Into<OwnedFd>, mut read: impl FnMut(&mut [u8]) -> usize) {
    let lines = lines(out, count);
    let pushed = 2 * WAITING_MAX / 1024;
    let before = LOST.load(Ordering::SeqCst);
    let began = Instant::now();
    for number in 0..pushed {
        lines.push(line(number));
    }
    lines.flush(Duration::from_millis(1));
    // For ever, if one waited.
    assert!(began.elapsed() < SOON);
    let lost = lines.lock().lost;
    assert!(lost > 0 && lines.lock().bytes <= WAITING_MAX);
    let kept = pushed - usize::try_from(lost).unwrap();
    let (mut all, mut into) = (Vec::new(), vec![0; 65536]);
    while all.len() < kept * 1024 {
        let length = read(&mut into);
        all.extend_from_slice(&into[..length]);
    }
    let whole: Vec<_> = (0..kept).flat_map(line).collect();
    assert!(all == whole, "lines came torn or out of order");
    lines.flush(SOON);
    assert_eq!(LOST.load(Ordering::SeqCst) - before, lost);
    lines.push(line(7));
    assert_eq!(read(&mut into), 1024);
}

/// Regression: a supervisor whose journal was stuck waited with its line about a dead daemon, and every container
/// with it.
///
/// Promise: nobody waits for whoever reads a log, be it a pipe or a socket; what was kept comes whole and in order
/// once it is read, and what was not is counted and told.
#[test]
fn a_reader_that_does_not_read_keeps_nobody_waiting() {
    let (mut reader, writer) = io::pipe().unwrap();
    stall(writer, |into| reader.read(into).unwrap());
    let (mut reader, writer) = UnixStream::pair().unwrap();
    stall(writer, |into| reader.read(into).unwrap());
    let (reader, writer) = UnixDatagram::pair().unwrap();
    stall(writer, |into| reader.recv(into).unwrap());
    // Another process that has it does not want to wait.
    let (mut reader, writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    stall(writer, |into| reader.read(into).unwrap());
}

/// Promise: a full disk, and a reader that is gone, cost lines and nothing else.
#[test]
fn what_cannot_be_written_is_counted() {
    fn never(lost: u64) {
        panic!("{lost} lines were told where none can be");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (reader, gone) = io::pipe().unwrap();
    drop(reader);
    for out in [OwnedFd::from(full), OwnedFd::from(gone)] {
        let lines = lines(out, never);
        for number in 0..3 {
            lines.push(line(number));
        }
        lines.flush(SOON);
        let queue = lines.lock();
        assert_eq!((queue.lost, queue.bytes), (3, 0));
    }
}
