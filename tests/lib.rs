//! Helpers of the integration tests: where the tree and its binaries are, a host for a test, and how a test says what it lacks.

pub mod load;
pub mod program;
pub mod rig;
mod ring;
mod skip;

pub use skip::skip;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the tree, as cargo names it when it runs the tests: a target directory may serve several checkouts.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let package =
            std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&package).parent().expect("the crate lies in the workspace").to_owned()
    })
}

/// Whether the program is in `PATH` or where the system keeps its administrator's.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|d| d.join(name).is_file())
}

/// The binary of this workspace with that name, built as it stands now in the profile of the running test.
///
/// # Panics
/// If it cannot be built.
pub fn binary(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    // Where nothing can be built, as on a file system that is read only, the caller has built them.
    let built = || std::env::var_os("COWSLIP_BINARIES").map_or_else(build_binaries, PathBuf::from);
    let path = DIRECTORY.get_or_init(built).join(name);
    assert!(path.is_file(), "the workspace has no binary {name}, {}", path.display());
    path
}

/// Cargo builds the binaries of a test's own package only.
fn build_binaries() -> PathBuf {
    // TARGET/PROFILE/deps/it-HASH
    let test = std::env::current_exe().expect("a running test has a path");
    let profile = test.parent().and_then(Path::parent).expect("cargo runs tests from TARGET/PROFILE/deps");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--workspace", "--bins"]).current_dir(root());
    build.env("CARGO_TARGET_DIR", profile.parent().expect("a profile lies in the target directory"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    forget_package(&mut build);
    let status = build.status().expect("cargo runs");
    assert!(status.success(), "the binaries do not build: {build:?}");
    profile.to_owned()
}

/// Takes what cargo tells a test of its own package from a command that runs cargo: a build script that asks for changes of such a
/// variable would be run again, and all that depends on it compiled again, here and by the next `cargo build` too.
pub fn forget_package(command: &mut Command) {
    for name in std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
}

/// How often something is done: `short`, or what the environment's `variable` says for a long run.
///
/// # Panics
/// If the variable is no number.
pub fn times(variable: &str, short: u32) -> u32 {
    std::env::var(variable).map_or(short, |value| value.parse().expect("a count"))
}

/// Where random numbers start: always the same, or what `COWSLIP_SEED` says.
///
/// # Panics
/// If the variable is no number.
pub fn seed() -> u64 {
    std::env::var("COWSLIP_SEED").map_or(5, |value| value.parse().expect("a number"))
}

/// Whether this machine gives its processes the right to grow an ext4 that is mounted.
///
/// # Panics
/// Without `/proc`.
pub fn may_grow_ext4() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").expect("there is /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("it has capabilities");
    u64::from_str_radix(line.trim(), 16).expect("a hexadecimal number") & 1 << CAP_SYS_RESOURCE != 0
}
