//! Places where tests kill the process, between two steps that a crash may separate.
//!
//! A test arms one of them by its name in the file that `LARDER_FAILPOINT` names: the process that comes
//! by takes the file away and kills itself, so that its successor goes on. Only in builds with debug
//! assertions, which is what tests are built with: a release has neither the check nor the names.

/// Kills this process if a test armed the place `name`.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str) {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static ARMED: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(path) = ARMED.get_or_init(|| std::env::var_os("LARDER_FAILPOINT").map(PathBuf::from))
    else {
        return;
    };
    if std::fs::read_to_string(path).is_ok_and(|armed| armed == name) {
        drop(std::fs::remove_file(path));
        // As the kernel kills: nothing is flushed, no destructor runs.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn failpoint(_: &str) {}
