//! `cofferdam-runtime`: all of it is in the library, so that what reads input from outside can be
//! fuzzed.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    container_runtime::main()
}
