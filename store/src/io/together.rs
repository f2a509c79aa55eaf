//! Requests of one piece of work that are under way together, on one thread.

use crate::Result;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// How many at most: a ring serves many pieces of work, and has room for a few requests of each.
pub const TOGETHER: usize = 16;

/// Drives all of them to their ends, at most [`TOGETHER`] at once, begun in their order. After an error no further one is
/// begun; it is told when those under way have ended. A single one costs no allocation.
pub async fn together<F: Future<Output = Result<()>>>(all: impl IntoIterator<Item = F>) -> Result<()> {
    let mut waiting = all.into_iter();
    let Some(first) = waiting.next() else { return Ok(()) };
    let Some(second) = waiting.next() else { return first.await };
    let mut waiting = [first, second].into_iter().chain(waiting);
    let (mut under_way, mut outcome) = (Vec::<Pin<Box<F>>>::new(), Ok(()));
    poll_fn(|cx| {
        let mut goes_on = |one: &mut Pin<Box<F>>, outcome: &mut Result<()>| {
            let Poll::Ready(ended) = one.as_mut().poll(cx) else { return true };
            if outcome.is_ok() {
                *outcome = ended;
            }
            false
        };
        under_way.retain_mut(|one| goes_on(one, &mut outcome));
        while outcome.is_ok()
            && under_way.len() < TOGETHER
            && let Some(one) = waiting.next()
        {
            let mut one = Box::pin(one);
            if goes_on(&mut one, &mut outcome) {
                under_way.push(one);
            }
        }
        if !under_way.is_empty() {
            return Poll::Pending;
        }
        Poll::Ready(std::mem::replace(&mut outcome, Ok(())))
    })
    .await
}
