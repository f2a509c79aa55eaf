//! What needs programs of Kubernetes, which `tests/kubernetes/build` makes, and a cluster, which `tests/kubernetes/test` starts: run
//! by `make test-kubernetes`.

mod bench;
mod browsing;
mod changes;
mod cluster;
#[path = "../it/csi_rig.rs"]
#[allow(dead_code, reason = "shared with the other integration tests")]
mod csi_rig;
mod faults;
mod groups;
mod legacy;
mod objects;
mod placing;
mod races;
mod restoring;
mod sanity;
mod security;
mod volumes;
mod walkthrough;

use integration_tests::{rig, skip};
use std::path::PathBuf;

/// Where `tests/kubernetes/build` keeps what it makes.
fn cache() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
    cache.join("cowslip/kubernetes")
}

/// A program that `tests/kubernetes/build` has made; None, said: it has not.
fn program(name: &str) -> Option<PathBuf> {
    let path = cache().join("bin").join(name);
    if path.is_file() {
        return Some(path);
    }
    skip(&format!("there is no {}: run tests/kubernetes/build, which needs Go 1.26", path.display()));
    None
}
