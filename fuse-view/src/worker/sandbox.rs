//! What a worker gives up before it sees the first byte of an image.
//!
//! Invariants: after [`Sandbox::close`] no thread of the process can open or make anything: no file, socket, process,
//! thread or executable memory. What it can still do is compute, allocate up to its limit, and use the descriptors that
//! it was given.
//!
//! The walls stand behind each other, so that one that a kernel does not have leaves the others: it is told, and the
//! worker works. The allow-list answers EPERM instead of killing: a C library that asks for more than today's gets an
//! error where it expects one, and a worker under somebody's control gains nothing from it.

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::{
    process::{DumpableBehavior, Gid, Resource, Rlimit, Uid},
    thread::{CapabilitySet, CapabilitySets},
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule as Rule, TargetArch,
};
use std::{collections::BTreeMap, fs, io};

/// Largest file that a worker may write: the scratch file, for a log of the largest size there is.
const FILE_BYTES: u64 = 4 << 30;
/// How gladly the kernel ends a worker when memory is short: before anything that serves a device.
const OOM_SCORE: &str = "500";

/// The walls, while they are put up.
#[derive(Default)]
pub struct Sandbox {
    /// What this kernel does not have.
    pub missing: Vec<String>,
}

impl Sandbox {
    /// Puts up what threads inherit from the thread that calls this: to be called before any other is started.
    pub fn prepare(&mut self, user: Option<(u32, u32)>, memory_bytes: u64) -> io::Result<()> {
        // Before anything else: it needs the file, and what follows takes that away.
        let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        let descriptors = highest_descriptor()?;
        for (resource, most) in [
            (Resource::Core, 0),
            (Resource::Data, memory_bytes),
            (Resource::Fsize, FILE_BYTES),
            (Resource::Memlock, 0),
            (Resource::Msgqueue, 0),
            // Numbers from this on cannot be given: nothing more can be opened.
            (Resource::Nofile, descriptors + 1),
        ] {
            limit(resource, most)?;
        }
        if let Some((uid, gid)) = user {
            self.told("a user of its own", become_user(uid, gid));
        }
        rustix::thread::set_no_new_privs(true)?;
        let _ = rustix::thread::clear_ambient_capability_set();
        let none = CapabilitySet::empty();
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: none, permitted: none, inheritable: none },
        )?;
        // After the change of the user, which resets it.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let landlock = landlock();
        self.told("landlock", landlock);
        Ok(())
    }

    /// Puts up the last wall, around all threads of the process. They are all started by now.
    pub fn close(&mut self) -> io::Result<()> {
        limit(Resource::Nproc, 0)?;
        let program = program().map_err(io::Error::other)?;
        let closed = seccompiler::apply_filter_all_threads(&program).map_err(io::Error::other);
        self.told("seccomp", closed);
        Ok(())
    }

    fn told(&mut self, what: &str, done: io::Result<()>) {
        if let Err(error) = done {
            self.missing.push(format!("{what}: {error}"));
        }
    }
}

fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let before = rustix::process::getrlimit(resource).maximum;
    let most = Some(before.map_or(most, |before| before.min(most)));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: most, maximum: most })?)
}

fn highest_descriptor() -> io::Result<u64> {
    let numbers = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    Ok(numbers.max().unwrap_or(2))
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// No file may be opened, no port used, no process outside signalled.
fn landlock() -> io::Result<()> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(io::Error::other)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(io::Error::other("not in this kernel"));
    }
    Ok(())
}

/// The allow-list. Reading and writing need a descriptor that it has; memory is never executable.
fn program() -> Result<BpfProgram, seccompiler::BackendError> {
    let free = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pread64,
        libc::SYS_pwrite64,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_close,
        libc::SYS_futex,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_sched_yield,
        libc::SYS_getrandom,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut rules: BTreeMap<i64, Vec<Rule>> = free.into_iter().map(|call| (call, Vec::new())).collect();
    let not_executable =
        || Condition::new(2, Len::Dword, Op::MaskedEq(u64::from(libc::PROT_EXEC.unsigned_abs())), 0);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![Rule::new(vec![not_executable()?])?]);
    }
    // How a panic ends the process. No other process can be signalled.
    let own = Condition::new(0, Len::Dword, Op::Eq, std::process::id().into())?;
    let abort = Condition::new(2, Len::Dword, Op::Eq, u64::from(libc::SIGABRT.unsigned_abs()))?;
    rules.insert(libc::SYS_tgkill, vec![Rule::new(vec![own, abort])?]);
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()
}
