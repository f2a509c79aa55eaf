//! Locks and atomics of the parts that are model-checked (the gate, the I/O epochs, the log's group commit): the real
//! ones, or with the feature `models` those of the checker, which tries interleavings of its own (`tests/models.rs`).

#[cfg(not(feature = "models"))]
mod real {
    pub use parking_lot::Mutex;
    pub use std::sync::atomic;

    /// Lets others go on while this thread looks again and again.
    pub fn rest(pause: std::time::Duration) {
        std::thread::sleep(pause);
    }
}

#[cfg(feature = "models")]
mod checked {
    use shuttle::sync::MutexGuard;
    pub use shuttle::sync::atomic;

    /// As `parking_lot::Mutex`: without poison.
    #[derive(Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A lock around a value.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread of a model panics")
        }
    }

    /// Lets others go on while this thread looks again and again.
    pub fn rest(_: std::time::Duration) {
        shuttle::thread::yield_now();
    }
}

#[cfg(feature = "models")]
pub use checked::*;
#[cfg(not(feature = "models"))]
pub use real::*;
