//! `cowslip`: the command line and the per-host agent in one binary.

mod changes;
mod cli;
mod config;
mod logging;
mod readers;
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // Processes that the agent or a command starts: they must not do anything before.
    match arguments.next() {
        Some(first) if first == ublk_target::freeze::GUARD_ARGUMENT => {
            ublk_target::freeze::guard_main(arguments)
        }
        Some(first) if first == fuse_view::worker::ARGUMENT => fuse_view::worker::main(arguments),
        _ => cli::main(),
    }
}
