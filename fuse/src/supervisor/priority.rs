//! Who goes first where more wants to run than there are processors: containers wait for a daemon that
//! starts, and for one before it to be gone.
//!
//! All of it is best effort: without the right to raise priorities a takeover takes longer on a busy
//! machine, no more.

use rustix::process::{Pid, getpid, getpriority_process, setpriority_process};

/// Of the supervisor, which only ever runs when somebody waits for it, and of a daemon until it serves.
const HURRIED: i32 = -10;

/// Of a daemon that serves, and so competes with those it serves.
const ORDINARY: i32 = 0;

/// Of what was killed and has but to notice.
const DYING: i32 = -20;

/// Raises the calling thread, and what it starts from here on.
pub(super) fn hurry() {
    let _ = setpriority_process(None, HURRIED);
}

/// Lowers what [`hurry`] raised of this process; threads of lower priority keep theirs.
pub(super) fn calm_down() {
    for thread in threads(getpid()) {
        if getpriority_process(Some(thread)).is_ok_and(|now| now < ORDINARY) {
            let _ = setpriority_process(Some(thread), ORDINARY);
        }
    }
}

/// Has the threads of a killed process end soon. One of low priority, as of a proof, would wait for a
/// processor for a second or two before it notices, and hold what the process held.
pub(super) fn hasten(process: Pid) {
    for thread in threads(process) {
        if setpriority_process(Some(thread), DYING).is_err() {
            // With a limit of the service alone.
            let _ = setpriority_process(Some(thread), ORDINARY);
        }
    }
}

fn threads(process: Pid) -> impl Iterator<Item = Pid> {
    let path = format!("/proc/{}/task", process.as_raw_nonzero());
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// Promise: a thread of the lowest priority goes first once its process is killed, and ordinary
    /// threads are as they were once a daemon serves.
    #[test]
    fn priorities_are_raised_and_given_back() {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let thread = std::thread::spawn(move || {
            setpriority_process(None, 19).unwrap();
            tell.send(Pid::from_raw(nix::unistd::gettid().as_raw()).unwrap())
                .unwrap();
            let _ = ended.recv();
        });
        let low = told.recv().unwrap();
        let now = || getpriority_process(Some(low)).unwrap();
        calm_down();
        assert_eq!(now(), 19);
        hasten(getpid());
        assert!(now() <= ORDINARY, "{}", now());
        calm_down();
        assert_eq!(now(), ORDINARY);
        drop(end);
        thread.join().unwrap();
    }
}
