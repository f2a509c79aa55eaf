//! Runs the tasks of one queue on its thread: a bit for each task tells whether it is to be polled.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Which tasks are to be polled.
struct Ready(Box<[AtomicU64]>);

impl Ready {
    fn mark(&self, task: usize) {
        self.0[task / 64].fetch_or(1 << (task % 64), Ordering::Release);
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

/// The tasks of a queue. A waker may be used from any thread, but does not wake this one: whoever uses it from
/// elsewhere must also put something into the queue's ring.
pub(super) struct Tasks<'a> {
    tasks: Vec<Task<'a>>,
    ready: Arc<Ready>,
    left: usize,
}

impl<'a> Tasks<'a> {
    /// Of these futures, each to be polled once to begin with.
    pub(super) fn new(futures: Vec<Pin<Box<dyn Future<Output = ()> + 'a>>>) -> Self {
        let words = futures.len().div_ceil(64);
        let ready = Arc::new(Ready((0..words).map(|_| AtomicU64::new(0)).collect()));
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
            for (index, word) in ready.0.iter().enumerate() {
                let mut bits = word.swap(0, Ordering::Acquire);
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
        let mut tasks = Tasks::new((0..count).rev().map(task).collect());
        assert_eq!(tasks.run(), 0);
        assert_eq!(turn.borrow().0, count);
        assert_eq!(tasks.run(), 0, "a wake-up of an ended task is nothing");
    }

    #[test]
    fn a_task_that_waits_is_counted_and_not_polled() {
        let polls = RefCell::new(0);
        let wait = poll_fn(|_| {
            *polls.borrow_mut() += 1;
            Poll::<()>::Pending
        });
        let mut tasks = Tasks::new(vec![Box::pin(wait), Box::pin(async {})]);
        assert_eq!((tasks.run(), tasks.run()), (1, 1));
        assert_eq!(*polls.borrow(), 1);
    }
}
