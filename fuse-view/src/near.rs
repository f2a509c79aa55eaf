//! Threads that serve where they are asked.
//!
//! A program that lists a tree asks for one small thing after another and sleeps until each is answered. On two
//! processors each answer costs two wake-ups by interrupt, several times what the answer takes; on one it costs two
//! switches. So a thread that is asked by the same program again and again binds itself to that program's processor.
//! The scheduler would move the program to an idle one all the same, but for a thread of policy `SCHED_IDLE` it does
//! not: the processor of such a thread counts as idle (sched(7); `sched_idle_cpu` in the kernel's fair.c).
//!
//! Both are kept no longer than they pay. A thread is free again as soon as somebody else asks, for much data (copying
//! goes on beside the reader), where requests come slowly (the processor has other work, against which `SCHED_IDLE`
//! would lose), and before it starts a process, which would inherit both.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::{
    cell::RefCell,
    fs, io,
    sync::LazyLock,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Requests of one program, one after another, after which a thread binds itself, at first and at most.
const STREAK: u32 = 64;
const LONGEST_STREAK: u32 = 1 << 16;
/// Requests after which a bound thread looks where the program is now.
const LOOK: u32 = 256;
/// Between two requests of a streak there is less than this.
const PAUSE: Duration = Duration::from_millis(1);
/// So many pauses between two looks end the binding, and make the next one harder. A disk that is waited for now and
/// then makes fewer, a processor with other work one at each request.
const PAUSES: u32 = 32;

/// When a thread of this process was last asked, in nanoseconds since the first time. Whichever thread answers: one
/// that the others leave nothing to do is not asked slowly.
static LAST: AtomicU64 = AtomicU64::new(0);
static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Notes a request; whether there was none for long.
fn paused() -> bool {
    let now = u64::try_from(FIRST.elapsed().as_nanos()).unwrap_or(u64::MAX);
    u128::from(now.saturating_sub(LAST.swap(now, Ordering::Relaxed))) > PAUSE.as_nanos()
}

/// What one thread knows of who asks it.
struct Near {
    /// The asking thread; 0: nobody in particular.
    asker: u32,
    /// Requests of it in a row.
    streak: u32,
    /// Pauses since a look.
    pauses: u32,
    /// The streak that it takes.
    wanted: u32,
    /// The processor that this thread is bound to, and where it might run before.
    bound: Option<(usize, CpuSet)>,
}

thread_local! {
    static NEAR: RefCell<Near> = RefCell::new(Near::new());
}

/// Tells that the thread `asker` waits for a small answer of this thread.
pub fn asked_by(asker: u32) {
    NEAR.with_borrow_mut(|near| near.asked_by(asker, paused()));
}

/// Tells that what this thread does now is better done anywhere.
pub fn anywhere() {
    NEAR.with_borrow_mut(Near::leave);
}

/// Whether a thread may come back from `SCHED_IDLE`: not without `CAP_SYS_NICE` or `RLIMIT_NICE`. Found out by a thread
/// that ends then.
static ALLOWED: LazyLock<bool> = LazyLock::new(|| {
    let there_and_back = || set_policy(libc::SCHED_IDLE).and_then(|()| set_policy(libc::SCHED_OTHER)).is_ok();
    let thread = std::thread::Builder::new().name("fuse-near".into()).spawn(there_and_back);
    thread.is_ok_and(|thread| thread.join().unwrap_or(false))
});

impl Near {
    fn new() -> Self {
        Self { asker: 0, streak: 0, pauses: 0, wanted: STREAK, bound: None }
    }

    /// `paused`: nobody had asked for a while.
    fn asked_by(&mut self, asker: u32, paused: bool) {
        if asker != self.asker {
            self.leave();
            self.asker = asker;
        } else if paused {
            self.pause();
        }
        self.streak = self.streak.saturating_add(1);
        match &self.bound {
            None if self.streak >= self.wanted && asker != 0 => self.follow(),
            Some(_) if self.streak.is_multiple_of(LOOK) => {
                (self.pauses, self.wanted) = (0, STREAK);
                self.follow();
            }
            _ => {}
        }
    }

    fn pause(&mut self) {
        if self.bound.is_none() {
            self.streak = 0;
            return;
        }
        self.pauses += 1;
        if self.pauses == PAUSES {
            self.leave();
            self.wanted = (self.wanted * 8).min(LONGEST_STREAK);
        }
    }

    /// Goes where the asker ran last.
    fn follow(&mut self) {
        if !*ALLOWED {
            return;
        }
        let Some(cpu) = processor_of(self.asker).filter(|cpu| *cpu < CpuSet::MAX_CPU) else {
            return self.leave();
        };
        let before = match &self.bound {
            Some((at, _)) if *at == cpu => return,
            Some((_, before)) => *before,
            None => match sched_getaffinity(None) {
                Ok(before) => before,
                Err(_) => return,
            },
        };
        let mut only = CpuSet::new();
        only.set(cpu);
        // Refused where this process may not run on that processor.
        if sched_setaffinity(None, &only).is_err() {
            return self.leave();
        }
        self.bound = Some((cpu, before));
        if set_policy(libc::SCHED_IDLE).is_err() {
            self.leave();
        }
    }

    fn leave(&mut self) {
        (self.streak, self.pauses) = (0, 0);
        if let Some((_, before)) = self.bound.take() {
            let _ = set_policy(libc::SCHED_OTHER);
            let _ = sched_setaffinity(None, &before);
        }
    }
}

/// Sets the calling thread's policy of scheduling, one of those without priorities.
#[allow(unsafe_code)] // a system call that neither std nor rustix has
fn set_policy(policy: libc::c_int) -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the parameters live through the call.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const none) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The processor that a thread ran on last: field 39 of /proc/TID/stat, proc_pid_stat(5). The second field, the
/// program's name in parentheses, may hold anything.
fn processor_of(thread: u32) -> Option<usize> {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
#[path = "../../tests/skip.rs"]
mod skip;

#[cfg(test)]
mod tests {
    use super::*;

    /// Where this thread may run, and whether its policy is `SCHED_IDLE`.
    fn state() -> (Vec<usize>, bool) {
        let set = sched_getaffinity(None).unwrap();
        let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
        // Field 41.
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(')').unwrap();
        (cpus, fields.split_ascii_whitespace().nth(41 - 3) == Some("5"))
    }

    /// In a thread of its own: the test's keeps its state.
    fn in_a_thread(test: impl FnOnce() + Send + 'static) {
        std::thread::spawn(test).join().unwrap();
    }

    /// So many requests, each `SLOW` or not.
    fn ask(near: &mut Near, asker: u32, count: u32, paused: bool) {
        for _ in 0..count {
            near.asked_by(asker, paused);
        }
    }

    const NOT_ALLOWED: &str = "a thread may not leave SCHED_IDLE; run as root, or with `ulimit -e 20`";
    const QUICK: bool = false;
    const SLOW: bool = true;

    fn bound(near: &Near) -> bool {
        assert_eq!(near.bound.is_some(), state().1);
        if near.bound.is_some() {
            assert_eq!(state().0.len(), 1);
        }
        near.bound.is_some()
    }

    #[test]
    fn a_thread_is_bound_while_one_program_asks() {
        if !*ALLOWED {
            return skip::skip(NOT_ALLOWED);
        }
        in_a_thread(|| {
            let (before, own) = (state(), std::process::id());
            let mut near = Near::new();
            ask(&mut near, own, STREAK - 1, QUICK);
            assert!(!bound(&near));
            ask(&mut near, own, 1, QUICK);
            assert!(bound(&near));
            // Somebody else.
            ask(&mut near, 1, 1, QUICK);
            assert_eq!(state(), before);
            ask(&mut near, own, STREAK, QUICK);
            assert!(bound(&near));
            near.leave();
            assert_eq!(state(), before);
        });
    }

    #[test]
    fn slow_programs_are_left_and_believed_less_and_less() {
        if !*ALLOWED {
            return skip::skip(NOT_ALLOWED);
        }
        in_a_thread(|| {
            let (before, own) = (state(), std::process::id());
            let mut near = Near::new();
            ask(&mut near, own, 10 * STREAK, SLOW);
            assert_eq!(state(), before);
            ask(&mut near, own, STREAK, QUICK);
            assert!(bound(&near));
            ask(&mut near, own, PAUSES, SLOW);
            assert_eq!(state(), before);
            ask(&mut near, own, 8 * STREAK - 2, QUICK);
            assert!(!bound(&near));
            ask(&mut near, own, 2, QUICK);
            assert!(bound(&near));
            // Who is quick for long is believed at once the next time.
            ask(&mut near, own, 2 * LOOK, QUICK);
            near.leave();
            ask(&mut near, own, STREAK, QUICK);
            assert!(bound(&near));
            near.leave();
        });
    }

    #[test]
    fn who_is_nobody_or_gone_binds_nothing() {
        in_a_thread(|| {
            let before = state();
            let mut near = Near::new();
            ask(&mut near, 0, 2 * STREAK, QUICK);
            ask(&mut near, u32::MAX, 2 * STREAK, QUICK);
            assert_eq!(state(), before);
        });
    }
}
