//! What `make install` puts where, with binaries of the profile under test.

use integration_tests::{binary, root};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn install(destination: &Path, prefix: &str) {
    install_for(destination, prefix, None);
}

fn install_for(destination: &Path, prefix: &str, systemd: Option<&str>) {
    let binaries = binary("cowslip").parent().expect("it lies in a directory").to_owned();
    let output = Command::new(root().join("setup/install"))
        .arg(binaries)
        .env("DESTDIR", destination)
        .env("PREFIX", prefix)
        .envs(systemd.map(|version| ("SYSTEMD_VERSION", version)))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(metadata.len() > 0, "{} is empty", path.display());
    metadata.permissions().mode() & 0o7777
}

#[test]
fn everything_is_where_the_system_looks_for_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    install(dir.path(), "/usr");
    for (path, expected) in [
        ("bin/cowslip", 0o755),
        ("bin/cowslip-csi", 0o755),
        ("lib/systemd/system/cowslip.service", 0o644),
        ("lib/tmpfiles.d/cowslip.conf", 0o644),
        ("lib/sysusers.d/cowslip.conf", 0o644),
        ("lib/modules-load.d/cowslip.conf", 0o644),
        ("lib/udev/rules.d/59-cowslip.rules", 0o644),
        ("share/bash-completion/completions/cowslip", 0o644),
        ("share/zsh/site-functions/_cowslip", 0o644),
        ("share/fish/vendor_completions.d/cowslip.fish", 0o644),
        ("share/man/man1/cowslip.1", 0o644),
    ] {
        assert_eq!(mode(&dir.path().join("usr").join(path)), expected, "{path}");
    }
    let help = Command::new(dir.path().join("usr/bin/cowslip")).arg("--help").output().expect("it runs");
    assert!(help.status.success());
}

#[test]
fn settings_that_the_users_systemd_lacks_are_left_out() {
    for (version, expected) in [("252", false), ("254", true)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        install_for(dir.path(), "/usr", Some(version));
        let drop_in = dir.path().join("usr/lib/systemd/system/cowslip.service.d/preserve.conf");
        assert_eq!(drop_in.exists(), expected, "systemd {version}");
    }
}

#[test]
fn the_unit_starts_the_installed_binary() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    install(dir.path(), "/opt/cowslip");
    let unit = dir.path().join("opt/cowslip/lib/systemd/system/cowslip.service");
    let text = fs::read_to_string(unit).expect("the unit is there");
    assert!(text.contains("\nExecStart=/opt/cowslip/bin/cowslip agent\n"), "{text}");
    assert!(!text.contains("/usr/bin/"), "{text}");
}
