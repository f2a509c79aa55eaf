//! The files for systemd and udev, read by the programs that will read them.

use integration_tests::{has_program, root, skip};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The first systemd that keeps stored descriptors of a stopped unit.
const PRESERVES: u32 = 254;

fn file(name: &str) -> PathBuf {
    root().join("systemd").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).expect("the file is there")
}

/// What the program says, on either stream.
fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

/// Whether the program is here; says so if it is not.
fn require(program: &str, package: &str) -> bool {
    let here = has_program(program);
    if !here {
        skip(&format!("{program} is missing: install {package}"));
    }
    here
}

/// The number in "systemd 252 (…)".
fn systemd_version() -> u32 {
    let output = Command::new("systemd-analyze").arg("--version").output().expect("systemd-analyze runs");
    let text = said(&output);
    text.split_whitespace()
        .nth(1)
        .and_then(|v| v.parse().ok())
        .unwrap_or_else(|| panic!("no version: {text}"))
}

/// The unit in `dir` as it is installed for systemd `version`, with a program that this machine has.
fn unit_with_a_program(dir: &Path, version: u32) -> PathBuf {
    if version >= PRESERVES {
        let drop_ins = dir.join("cowslip.service.d");
        fs::create_dir(&drop_ins).expect("the directory is writable");
        fs::write(drop_ins.join("preserve.conf"), read("preserve-254.conf")).expect("it too");
    }
    let text = read("cowslip.service");
    assert!(text.contains("ExecStart=/usr/bin/cowslip agent\n"));
    let unit = dir.join("cowslip.service");
    fs::write(&unit, text.replace("/usr/bin/cowslip", "/bin/true")).expect("the directory is writable");
    unit
}

#[test]
fn systemd_has_nothing_to_say_about_the_unit() {
    if !require("systemd-analyze", "systemd") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let version = systemd_version();
    let unit = unit_with_a_program(dir.path(), version);
    let output =
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().expect("it runs");
    let text = said(&output);
    let findings: Vec<&str> = text.lines().filter(|line| line.contains("cowslip")).collect();
    assert!(output.status.success(), "systemd {version}:\n{text}");
    assert!(findings.is_empty(), "systemd {version}:\n{}", findings.join("\n"));
}

/// A namespace of its own would hide /snapshots from everybody else.
#[test]
fn the_unit_stays_in_the_mount_namespace_of_the_host() {
    let isolating = [
        "PrivateTmp",
        "PrivateMounts",
        "PrivateDevices",
        "PrivateNetwork",
        "ProtectSystem",
        "ProtectHome",
        "ProtectProc",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "BindPaths",
        "BindReadOnlyPaths",
        "TemporaryFileSystem",
        "RootDirectory",
        "RootImage",
        "DynamicUser",
        "MountFlags",
    ];
    let text = read("cowslip.service");
    let keys: BTreeSet<&str> = text.lines().filter_map(|l| Some(l.split_once('=')?.0)).collect();
    assert!(keys.contains("ExecStart"));
    let found: Vec<_> = isolating.iter().filter(|key| keys.contains(*key)).collect();
    assert!(found.is_empty(), "{found:?}");
}

/// A lost descriptor, a core dump in progress or a given-up restart would leave devices that hang.
#[test]
fn the_unit_keeps_devices_over_a_restart() {
    let text = read("cowslip.service");
    for line in [
        "Type=notify",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "KillMode=mixed",
        "LimitCORE=0",
        "LimitMEMLOCK=infinity",
    ] {
        assert!(text.lines().any(|l| l == line), "the unit has no line {line}");
    }
    let preserve = read("preserve-254.conf");
    assert!(preserve.lines().any(|l| l == "FileDescriptorStorePreserve=yes"), "{preserve}");
}

#[test]
fn tmpfiles_makes_the_directories() {
    if !require("systemd-tmpfiles", "systemd") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let may_give_to_root = std::os::unix::fs::chown(dir.path(), Some(0), Some(0)).is_ok();
    if !may_give_to_root {
        return skip("only root can make root's directories: run it as root");
    }
    let output = Command::new("systemd-tmpfiles")
        .arg(format!("--root={}", dir.path().display()))
        .arg("--create")
        .arg(file("tmpfiles.d/cowslip.conf"))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    for (path, mode) in [("", 0o755), ("ring", 0o700)] {
        let made = dir.path().join("run/cowslip").join(path);
        let metadata = fs::metadata(&made).unwrap_or_else(|e| panic!("{}: {e}", made.display()));
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{}", made.display());
    }
}

#[test]
fn sysusers_makes_the_group() {
    if !require("systemd-sysusers", "systemd") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(dir.path().join("etc")).expect("the directory is writable");
    let output = Command::new("systemd-sysusers")
        .arg(format!("--root={}", dir.path().display()))
        .arg(file("sysusers.d/cowslip.conf"))
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    let groups = fs::read_to_string(dir.path().join("etc/group")).expect("there are groups now");
    assert!(groups.starts_with("cowslip:"), "{groups}");
}

#[test]
fn modules_are_names_and_comments() {
    let text = read("modules-load.d/cowslip.conf");
    let modules: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    assert_eq!(modules, ["fuse", "loop"]);
}

#[test]
fn udev_jumps_to_labels_that_are_there() {
    let text = read("udev/59-cowslip.rules");
    let values = |key: &str| -> BTreeSet<String> {
        let start = format!("{key}=\"");
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .flat_map(|line| line.split(start.as_str()).skip(1).filter_map(|rest| rest.split('"').next()))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(values("GOTO"), values("LABEL"));
    // `udevadm verify` came with systemd 254.
    if has_program("udevadm") && has_program("systemd-analyze") && systemd_version() >= 254 {
        let output = Command::new("udevadm")
            .args(["verify", "--resolve-names=never"])
            .arg(file("udev/59-cowslip.rules"))
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
    }
}
