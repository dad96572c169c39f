//! The command-line tool `larder`.

use std::process::ExitCode;

fn main() -> ExitCode {
    larder::cli::run(std::env::args_os())
}
