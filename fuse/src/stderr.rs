//! Standard error for who must never wait for whoever reads it.
//!
//! A journal that is stuck leaves pipe or socket full, and a write waits for ever: neither a supervisor that is to
//! start the next daemon nor a daemon that containers wait for may do that. To write without waiting is not to be
//! had for all that standard error can be: the flag for it belongs to everybody who has the descriptor, between a
//! look and a write another process may take the room, and files know no such thing. So lines are queued, and a
//! thread writes them that may wait. What finds no room is counted, and told once there is some again.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Bytes of lines that wait at once: twenty thousand, which a reader that is late by a second does not miss at the
/// finest level, and a small part of the memory that a daemon is given.
const WAITING_MAX: usize = 4 << 20;

/// How long the last words of a program that fails may take. Where somebody reads, they take microseconds; on a
/// busy machine the thread may have to wait for a processor.
pub const LAST_WORDS_MAX: Duration = Duration::from_secs(1);

/// The same where containers wait for the end.
pub const FAREWELL_MAX: Duration = Duration::from_millis(100);

static STDERR: LazyLock<Lines<io::Stderr>> = LazyLock::new(|| Lines::new(io::stderr(), plainly));

/// Standard error; each write is a line, and none waits.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDERR.push(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes one line of the program: a sentence behind its name.
pub fn say(sentence: &str) {
    STDERR.push(format!("larder-snapshotter: {sentence}\n").into_bytes());
}

/// Has `tell` called with the number of lines that were lost, from now on, once there is room for lines again.
pub fn tell_losses_by(tell: fn(u64)) {
    STDERR.lock().tell = tell;
}

/// Waits until everything is written, but no longer than `patience`: before the process ends.
pub fn flush(patience: Duration) {
    STDERR.flush(patience);
}

thread_local! {
    /// Whether this thread's panics are an answer that somebody waits for.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`, and takes a panic for its answer, which is told nowhere else: for what reads files that a disk may have damaged
/// with code that takes them to be whole.
///
/// # Errors
/// What the panic said.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    CAUGHT.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(false);
    done.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        text.unwrap_or_else(|| "its reader gave up".into())
    })
}

/// Has panics told like everything else.
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        if CAUGHT.get() {
            return;
        }
        let thread = thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let trace = std::backtrace::Backtrace::capture();
        let trace = match trace.status() {
            std::backtrace::BacktraceStatus::Captured => format!("{trace}\n"),
            _ => String::new(),
        };
        STDERR.push(format!("thread '{name}' {panic}\n{trace}").into_bytes());
        // It may be the end of the process.
        STDERR.flush(FAREWELL_MAX);
    }));
}

fn plainly(lost: u64) {
    say(&lost_words(lost));
}

/// What is told of lines that were lost.
pub fn lost_words(lost: u64) -> String {
    format!(
        "{lost} lines of the log were lost: whoever reads it did not take them, or its disk was full"
    )
}

/// Lines on their way to `out`.
struct Lines<T> {
    out: T,
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
    has_thread: bool,
    lost: u64,
    tell: fn(u64),
}

impl<T: AsFd + Send + Sync + 'static> Lines<T> {
    fn new(out: T, tell: fn(u64)) -> Self {
        Self {
            out,
            changed: Condvar::new(),
            queue: Mutex::new(Queue {
                lines: VecDeque::new(),
                bytes: 0,
                is_writing: false,
                has_thread: false,
                lost: 0,
                tell,
            }),
        }
    }

    fn push(&'static self, line: Vec<u8>) {
        let mut queue = self.lock();
        if queue.bytes + taken(&line) > WAITING_MAX {
            queue.lost += 1;
            return;
        }
        queue.bytes += taken(&line);
        queue.lines.push_back(line);
        if !queue.has_thread {
            // Where there is none to be had now, with the next line.
            let thread = thread::Builder::new().name("larder-stderr".to_owned());
            queue.has_thread = thread.spawn(|| self.work()).is_ok();
        }
        drop(queue);
        self.changed.notify_all();
    }

    fn work(&self) {
        // They are for threads that know what to do.
        let _ = SigSet::all().thread_block();
        loop {
            let line = self.next();
            let written = write_all(&self.out, &line);
            let mut queue = self.lock();
            queue.is_writing = false;
            let mut lost = 0;
            if written.is_err() {
                queue.lost += 1;
            } else if queue.bytes <= WAITING_MAX / 2 {
                lost = std::mem::take(&mut queue.lost);
            }
            let tell = queue.tell;
            drop(queue);
            if lost > 0 {
                tell(lost);
            }
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let mut queue = self.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= taken(&line);
                queue.is_writing = true;
                return line;
            }
            let waited = self.changed.wait(queue);
            queue = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn flush(&self, patience: Duration) {
        let busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), patience, busy));
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of a line that waits, so that short ones have a limit, too.
const fn taken(line: &[u8]) -> usize {
    line.len() + size_of::<Vec<u8>>()
}

/// Writes a whole line, however long it takes: one write where it fits, since others write to the same place.
fn write_all(out: &impl AsFd, mut line: &[u8]) -> Result<(), Errno> {
    while !line.is_empty() {
        match rustix::io::write(out, line) {
            Ok(0) => return Err(Errno::IO),
            Ok(written) => line = &line[written..],
            Err(Errno::INTR) => {}
            // Somebody else who has the descriptor does not want to wait.
            Err(Errno::AGAIN) => {
                let mut room = [PollFd::new(out, PollFlags::OUT)];
                match poll(&mut room, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
