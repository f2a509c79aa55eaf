//! One binary for all integration tests, a module for each subject.

mod alone;
mod bad_input;
mod csi_groups;
mod csi_identity;
mod csi_rig;
mod csi_volumes;
mod cuts;
#[path = "../kernel/inside/fsynced.rs"]
mod fsynced;
mod full;
mod install;
mod interrupt;
mod kernel_view;
mod listing;
mod restore;
mod restore_guide;
mod scrub;
mod survival;
mod systemd;
mod tidy;
mod tree;
mod view_workers;

use integration_tests::rig;
