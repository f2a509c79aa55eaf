//! `cowslip`: the command line and the per-host agent in one binary.

mod changes;
mod cli;
mod config;
mod logging;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ublk_target::freeze::GUARD_ARGUMENT) {
        // A process that the agent starts: it must not do anything before.
        return ublk_target::freeze::guard_main(arguments);
    }
    cli::main()
}
