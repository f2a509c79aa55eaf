//! Exit codes and errors that need neither an agent nor an image.

mod common;

use common::{cowslip, run};
use std::process::Stdio;

/// No agent listens there.
const NOWHERE: [&str; 2] = ["--socket", "/nonexistent/agent.sock"];

fn nowhere(words: &[&str]) -> common::Ended {
    run(NOWHERE.iter().chain(words))
}

#[test]
fn what_cannot_be_right_is_usage_before_anything_is_sent() {
    for words in [
        &["volume", "create", "a/b", "--size", "1G"][..],
        &["volume", "create", "a@b", "--size", "1G"],
        &["volume", "create", "", "--size", "1G"],
        &["volume", "create", "db"],
        &["volume", "create", "db", "--size", "5000"],
        &["volume", "create", "db", "--size", "-1"],
        &["volume", "create", "db", "--size", "9E"],
        &["volume", "create", "db", "--size", "10GB"],
        &["volume", "create", "db", "--size", "1G", "--fs", "ntfs"],
        &["volume", "create", "db", "--size", "1G", "--label", "x"],
        &["volume", "create", "db", "--from", "x", "--size", "1G"],
        &["volume", "create", "db", "--from", "x@y", "--fs", "ext4"],
        &["volume", "resize", "db", "0"],
        &["volume", "rename", "db", ".."],
        &["volume", "show", "db@x"],
        &["volume", "import", "db", "./x", "--digest", "123"],
        &["snapshot", "create", "db"],
        &["snapshot", "create", "db@latest"],
        &["snapshot", "create", "db@a", "db@b"],
        &["snapshot", "delete"],
        &["clone", "db", "new"],
        &["rollback", "db"],
        &["ls", "db"],
        &["cat", "db:/x"],
        &["find", "db"],
        &["find", "db@x", "--size", "big"],
        &["find", "db@x", "--newer", "soon"],
        &["find", "db@x", "--type", "thing"],
        &["versions", "db"],
        &["versions", "db@x:/a"],
        &["diff", "db@x"],
        &["diff", "db", "db@x"],
        &["diff", "db@x:/a", "db@y:/b"],
        &["restore", "/tmp"],
        &["restore", "db@x", "/tmp"],
        &["status", "--wait", "soon"],
        &["nonsense"],
        &[],
        &["--pool", "/nonexistent", "volume", "list"],
    ] {
        let ended = nowhere(words).with(2);
        assert!(ended.stdout.is_empty(), "{words:?}: {ended:?}");
        assert!(!ended.stderr.is_empty(), "{words:?}");
    }
}

#[test]
fn a_missing_agent_is_exit_code_6() {
    for words in [
        &["volume", "list"][..],
        &["volume", "create", "db", "--size", "1G"],
        &["snapshot", "list"],
        &["status"],
        &["status", "--wait", "100ms"],
        &["events"],
        &["pool", "show"],
        &["ls", "db@x:/"],
        &["cat", "db@x:/etc/hosts"],
        &["find", "db@x"],
        &["versions", "db:/etc/hosts"],
        &["diff", "db@x", "db@y"],
        &["restore", "db@x:/a", "/tmp"],
        &["volume", "export", "db", "-"],
    ] {
        let ended = nowhere(words).with(6);
        assert!(ended.stderr.starts_with("error: "), "{ended:?}");
        assert!(ended.stderr.contains("/nonexistent/agent.sock"), "{ended:?}");
        assert!(ended.stderr.contains("\nhint: "), "{ended:?}");
    }
}

#[test]
fn the_socket_comes_from_the_environment_too() {
    let ended = cowslip().env("COWSLIP_SOCKET", "/nonexistent/env.sock").args(["status"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(6));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("/nonexistent/env.sock"));
}

#[test]
fn errors_are_json_when_asked_for() {
    let unreachable = nowhere(&["volume", "list", "--json"]).with(6).json_error();
    assert_eq!(unreachable["kind"], "unreachable");
    assert!(unreachable["message"].as_str().unwrap().contains("/nonexistent/agent.sock"));
    assert!(unreachable["hint"].is_string());
    let usage = nowhere(&["--json", "volume", "create"]).with(2).json_error();
    assert_eq!(usage["kind"], "usage");
    assert!(usage["message"].as_str().unwrap().contains("required"), "{usage}");
    let name = nowhere(&["--json", "volume", "show", "a@b"]).with(2).json_error();
    assert_eq!(name["hint"], "did you mean 'a'?");
}

#[test]
fn a_pool_that_is_not_there_is_not_found() {
    for words in
        [&["volume", "list"][..], &["snapshot", "list"], &["status"], &["pool", "show"], &["pool", "check"]]
    {
        run(["--pool", "/nonexistent/pool"].iter().chain(words)).with(3);
    }
    run(["pool", "check", "/nonexistent/pool"]).with(3);
    run(["pool", "dump", "/nonexistent/pool", "log"]).with(3);
}

#[test]
fn a_pool_is_only_read() {
    for words in [
        &["volume", "create", "db", "--size", "1G"][..],
        &["volume", "delete", "db"],
        &["snapshot", "create", "db@x"],
        &["rollback", "db@x"],
        &["events"],
        &["status", "--wait", "1s"],
    ] {
        let ended = run(["--pool", "/nonexistent/pool"].iter().chain(words)).with(2);
        assert!(ended.stderr.contains("--pool"), "{ended:?}");
    }
}

#[test]
fn images_that_are_not_there_or_hold_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str| format!("{}/{name}:/", dir.path().display());
    run(["ls", &image("none")]).with(3);
    run(["cat", &format!("{}:/x", dir.path().display())]).with(1);
    std::fs::write(dir.path().join("zeros"), vec![0; 1 << 20]).unwrap();
    let ended = run(["ls", &image("zeros")]).with(8);
    assert!(ended.stderr.contains("no file system"), "{ended:?}");
    run(["mount", &image("zeros"), "/nonexistent"]).with(8);
    run(["restore", &image("zeros")]).with(8);
}

#[test]
fn nothing_is_mounted_there() {
    let dir = tempfile::tempdir().unwrap();
    run(["umount".as_ref(), dir.path().as_os_str()]).with(3);
    run(["umount", "/proc"]).with(1);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let mut child = cowslip()
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn color_only_when_asked_for() {
    let plain = nowhere(&["volume", "list"]).stderr;
    assert!(!plain.contains('\u{1b}'));
    let colored = nowhere(&["--color", "always", "volume", "list"]).stderr;
    assert!(colored.starts_with("\u{1b}[1;31merror:\u{1b}[0m "), "{colored:?}");
}

#[test]
fn doctor_works_without_an_agent() {
    let ended = nowhere(&["doctor", "--json"]).with(1);
    let findings = ended.json();
    let findings = findings.as_array().unwrap();
    let of = |name: &str| {
        findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("{name}"))
    };
    assert_eq!(of("agent")["level"], "fail");
    for name in ["kernel", "fuse", "loop", "ublk", "ring", "memlock", "swap", "mkfs.ext4", "mounts"] {
        let finding = of(name);
        assert!(["ok", "warn", "fail"].contains(&finding["level"].as_str().unwrap()), "{finding}");
        assert_eq!(finding["hint"].is_null(), finding["level"] == "ok", "{finding}");
    }
    let text = nowhere(&["doctor"]).with(1).stdout;
    assert!(text.starts_with("fail  agent"), "{text}");
}
