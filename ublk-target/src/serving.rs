//! What a process owes to those who wait for the devices that it serves: it never waits for one of them itself (H7).
//!
//! Its core dump, its log and the file of its program may all lie on a volume. So it dies without a dump, its program
//! stays in memory, others are killed for memory first, and a line of its log that nobody takes is dropped.

mod lines;

pub use lines::Lines;

use crate::sys::process;
use std::{fs, io};
use store::mutation::Mutation;

/// This process, and what it starts, dies without a core dump. A dump is written before the process is gone and its
/// pool's lock free: into a file on a volume it would wait for the next server, which waits for that lock. It would
/// also hold users' data. The limit alone does not keep a dump from a program that `core_pattern` names, so the process
/// is not dumpable either; that one is to be said by each program anew.
///
/// # Errors
/// When the kernel refuses.
pub fn never_dump() -> io::Result<()> {
    if Mutation::CoreDumped.on() {
        return Ok(());
    }
    process::forbid_core()
}

/// Locks what is mapped now in memory, its program above all: one that was paged out, from a file on a volume, could
/// not be read again to serve that volume. To be called before threads and buffers are there: those that requests go
/// through are locked by themselves.
///
/// # Errors
/// When the limit (RLIMIT_MEMLOCK) is too low, without CAP_IPC_LOCK.
pub fn stay_in_memory() -> io::Result<()> {
    if Mutation::ProgramPagedOut.on() {
        return Ok(());
    }
    process::lock_memory_now()
}

/// As in systemd/cowslip.service.
const OOM_SCORE_ADJ: i32 = -900;

/// When memory runs out, the kernel kills others first: with this process would go what writes their dirty pages, which
/// is what frees memory (H3). What it starts inherits that.
///
/// # Errors
/// When the kernel refuses: without CAP_SYS_RESOURCE.
pub fn outlive_others() -> io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now: i32 = fs::read_to_string(FILE)?.trim().parse().map_err(io::Error::other)?;
    if now <= OOM_SCORE_ADJ { Ok(()) } else { fs::write(FILE, OOM_SCORE_ADJ.to_string()) }
}
