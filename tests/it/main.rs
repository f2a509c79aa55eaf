//! One binary for all integration tests, a module for each subject.

mod csi_identity;
mod install;
mod systemd;
mod tidy;
