//! Tests that need more than one life of a machine: they boot the test kernel themselves. `make test-kernel` runs them.

mod power;
