//! Runs the tasks of one queue on its thread: a bit for each task tells whether it is to be polled.
//!
//! Wakers may be used from any thread: the store's tasks wait for each other across queues, and for the checkpointer. A
//! thread that sleeps in its ring is woken by a byte in a pipe that the ring watches.

use std::future::Future;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Which tasks are to be polled, and how their thread is woken for them.
struct Ready {
    words: Box<[AtomicU64]>,
    /// The thread sleeps in its ring, or is about to.
    sleeping: AtomicBool,
    bell: PipeWriter,
}

impl Ready {
    fn mark(&self, task: usize) {
        self.words[task / 64].fetch_or(1 << (task % 64), Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst) {
            // At most one byte for each sleep: there is room.
            let _ = (&self.bell).write(&[1]);
        }
    }
}

/// Rings when a task is woken while its thread sleeps.
pub(super) struct Bell(PipeReader);

impl Bell {
    /// What the ring watches for being readable.
    pub(super) fn descriptor(&self) -> &PipeReader {
        &self.0
    }

    /// Takes the byte that was seen to be there.
    pub(super) fn quiet(&self) {
        let _ = (&self.0).read(&mut [0; 16]);
    }
}

/// What a queue's tasks and their wakers share; made before the tasks, which watch the bell.
pub(super) struct Schedule(Arc<Ready>);

impl Schedule {
    /// For so many tasks.
    pub(super) fn new(tasks: usize) -> io::Result<(Self, Bell)> {
        let (reader, bell) = io::pipe()?;
        let words = (0..tasks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok((Self(Arc::new(Ready { words, sleeping: AtomicBool::new(false), bell })), Bell(reader)))
    }

    /// To be called before the thread sleeps. False: some task is ready already.
    pub(super) fn may_sleep(&self) -> bool {
        self.0.sleeping.store(true, Ordering::SeqCst);
        // A task that was woken before this look is seen here; one woken after it rings the bell.
        self.0.words.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }

    /// To be called when it is awake again.
    pub(super) fn awake(&self) {
        self.0.sleeping.store(false, Ordering::SeqCst);
    }
}

struct TaskWaker {
    ready: Arc<Ready>,
    task: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.mark(self.task);
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.mark(self.task);
    }
}

struct Task<'a> {
    /// None: it has ended.
    future: Option<Pin<Box<dyn Future<Output = ()> + 'a>>>,
    waker: Waker,
}

/// The tasks of a queue.
pub(super) struct Tasks<'a> {
    tasks: Vec<Task<'a>>,
    ready: Arc<Ready>,
    left: usize,
}

impl<'a> Tasks<'a> {
    /// Of these futures, no more than the schedule is for, each to be polled once to begin with.
    pub(super) fn new(schedule: &Schedule, futures: Vec<Pin<Box<dyn Future<Output = ()> + 'a>>>) -> Self {
        let ready = Arc::clone(&schedule.0);
        let left = futures.len();
        let tasks = futures
            .into_iter()
            .enumerate()
            .map(|(task, future)| {
                ready.mark(task);
                let waker = Waker::from(Arc::new(TaskWaker { ready: Arc::clone(&ready), task }));
                Task { future: Some(future), waker }
            })
            .collect();
        Self { tasks, ready, left }
    }

    /// Polls until no task is ready. How many have not ended.
    pub(super) fn run(&mut self) -> usize {
        let ready = Arc::clone(&self.ready);
        loop {
            let mut found = false;
            for (index, word) in ready.words.iter().enumerate() {
                let mut bits = word.swap(0, Ordering::SeqCst);
                while bits != 0 {
                    found = true;
                    self.poll(index * 64 + bits.trailing_zeros() as usize);
                    bits &= bits - 1;
                }
            }
            if !found {
                return self.left;
            }
        }
    }

    fn poll(&mut self, index: usize) {
        let Task { future, waker } = &mut self.tasks[index];
        let Some(running) = future else { return };
        if running.as_mut().poll(&mut Context::from_waker(waker)) == Poll::Ready(()) {
            *future = None;
            self.left -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::future::poll_fn;

    /// Each task waits for its turn, which the one before it gives.
    #[test]
    fn tasks_wake_each_other_until_all_have_ended() {
        let count = 130;
        let turn = RefCell::new((0, vec![None::<Waker>; count]));
        let task = |me: usize| {
            let turn = &turn;
            let wait = poll_fn(move |cx| {
                let mut state = turn.borrow_mut();
                if state.0 == me {
                    return Poll::Ready(());
                }
                state.1[me] = Some(cx.waker().clone());
                Poll::Pending
            });
            let future: Pin<Box<dyn Future<Output = ()> + '_>> = Box::pin(async move {
                wait.await;
                let mut state = turn.borrow_mut();
                state.0 += 1;
                if let Some(next) = state.1.get_mut(me + 1).and_then(Option::take) {
                    next.wake();
                }
            });
            future
        };
        let (schedule, _bell) = Schedule::new(count).unwrap();
        let mut tasks = Tasks::new(&schedule, (0..count).rev().map(task).collect());
        assert_eq!(tasks.run(), 0);
        assert_eq!(turn.borrow().0, count);
        assert_eq!(tasks.run(), 0, "a wake-up of an ended task is nothing");
    }

    #[test]
    fn a_thread_that_sleeps_is_rung_for_and_one_that_is_awake_is_not() {
        let (schedule, bell) = Schedule::new(1).unwrap();
        let waker = Waker::from(Arc::new(TaskWaker { ready: Arc::clone(&schedule.0), task: 0 }));
        assert!(schedule.may_sleep());
        let wakes = std::thread::spawn(move || {
            waker.wake_by_ref();
            waker.wake();
        });
        bell.quiet(); // returns when the byte is there
        wakes.join().unwrap();
        schedule.awake();
        assert!(!schedule.may_sleep(), "the task is ready");
        schedule.awake();
        let mut tasks = Tasks::new(&schedule, vec![Box::pin(async {})]);
        assert_eq!(tasks.run(), 0);
        assert!(schedule.may_sleep());
        drop((tasks, schedule));
        let mut rest = Vec::new();
        (&bell.0).read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "one byte for one sleep");
    }

    #[test]
    fn a_task_that_waits_is_counted_and_not_polled() {
        let polls = RefCell::new(0);
        let wait = poll_fn(|_| {
            *polls.borrow_mut() += 1;
            Poll::<()>::Pending
        });
        let (schedule, _bell) = Schedule::new(2).unwrap();
        let mut tasks = Tasks::new(&schedule, vec![Box::pin(wait), Box::pin(async {})]);
        assert_eq!((tasks.run(), tasks.run()), (1, 1));
        assert_eq!(*polls.borrow(), 1);
    }
}
