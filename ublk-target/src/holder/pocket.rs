//! Nobody keeps them: devices end with this process.

use super::FdStore;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Keeps descriptors in this process only, for devices that need not outlive it.
#[derive(Default)]
pub struct Pocket(Mutex<BTreeMap<String, OwnedFd>>);

impl FdStore for Pocket {
    fn put(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.lock().insert(name.to_owned(), fd.try_clone_to_owned()?);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().remove(name);
        Ok(())
    }
    fn take_all(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(Vec::new())
    }
}
