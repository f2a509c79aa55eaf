//! One call at a time for each object.
//!
//! Invariants: a call that changes something holds its object's key until its work has ended, whether or not its
//! caller still waits; a second call for the same object is told `ABORTED` and comes again.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use tonic::Status;

/// The objects that are being worked on.
#[derive(Debug, Clone, Default)]
pub struct Pending(Arc<Mutex<HashSet<String>>>);

#[derive(Debug)]
struct Guard {
    pending: Pending,
    key: String,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pending.0.lock().remove(&self.key);
    }
}

impl Pending {
    fn begin(&self, key: &str) -> Result<Guard, Status> {
        if !self.0.lock().insert(key.to_owned()) {
            return Err(Status::aborted("another call for this object is under way"));
        }
        Ok(Guard { pending: self.clone(), key: key.to_owned() })
    }

    /// Does `work` as the only call for `key`, to its end even if the caller goes away.
    ///
    /// # Errors
    /// `ABORTED` while another one is under way; those of `work`.
    pub async fn alone<T: Send + 'static>(
        &self,
        key: &str,
        work: impl Future<Output = Result<T, Status>> + Send + 'static,
    ) -> Result<T, Status> {
        let guard = self.begin(key)?;
        let task = tokio::spawn(async move {
            let _guard = guard;
            work.await
        });
        task.await.unwrap_or_else(|failure| {
            tracing::error!("a call ended abnormally: {failure}");
            Err(Status::internal("the call ended abnormally; the driver's log says where"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tonic::Code;

    #[tokio::test]
    async fn a_second_call_for_the_same_object_is_aborted() {
        let pending = Pending::default();
        let (go, gate) = oneshot::channel::<()>();
        let first = tokio::spawn({
            let pending = pending.clone();
            async move {
                let work = async {
                    gate.await.map_err(|_| Status::internal("dropped"))?;
                    Ok(1)
                };
                pending.alone("a", work).await
            }
        });
        while pending.0.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(pending.alone("a", async { Ok(()) }).await.unwrap_err().code(), Code::Aborted);
        assert_eq!(pending.alone("b", async { Ok(2) }).await.unwrap(), 2);
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), 1);
        assert_eq!(pending.alone("a", async { Ok(3) }).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn work_goes_on_without_its_caller() {
        let pending = Pending::default();
        let (go, gate) = oneshot::channel::<()>();
        let (done, end) = oneshot::channel();
        let call = tokio::spawn({
            let pending = pending.clone();
            async move {
                let work = async move {
                    let _ = gate.await;
                    let _ = done.send(());
                    Ok(())
                };
                pending.alone("a", work).await
            }
        });
        while pending.0.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        call.abort();
        assert!(call.await.unwrap_err().is_cancelled());
        assert_eq!(pending.alone("a", async { Ok(()) }).await.unwrap_err().code(), Code::Aborted);
        go.send(()).unwrap();
        end.await.unwrap();
    }
}
