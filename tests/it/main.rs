//! One binary for all integration tests, a module for each subject.

mod csi_identity;
mod systemd;
mod tidy;
