//! Tests that run inside the test kernel, as root, one after the other: what a host's own kernel may not have or would
//! not forgive. `make test-kernel` builds and boots it. They use the transport that `COWSLIP_TEST_TRANSPORT` names.

mod agents;
mod bench;
mod copies;
mod devices;
mod fsynced;
mod gaps;
mod group;
mod kills;
mod late;
mod log_writes;
mod mkfs;
mod power;
mod pressure;
mod space;
mod stacks;
mod stock;

use integration_tests::rig::Rig;
use std::path::Path;

/// A rig whose pool is a disk.
fn rig_on(disk: &Path) -> Rig {
    let rig = Rig::without_agent().expect("this kernel has all that is needed");
    std::os::unix::fs::symlink(disk, rig.path("pool")).expect("the directory is writable");
    rig
}
