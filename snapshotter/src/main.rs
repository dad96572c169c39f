//! The program `larder-snapshotter`; see [`larder_snapshotter::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    larder_snapshotter::cli::main()
}
