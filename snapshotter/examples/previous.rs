//! The program as a build before this one was, as far as the sessions' state goes: for the tests of
//! upgrades and downgrades.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder_fuse::write_state_as(1);
    larder_snapshotter::cli::main()
}
