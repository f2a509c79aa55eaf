//! What holds for the tree as a whole: edges between crates, dependencies with reasons, no leftovers.

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use integration_tests::root;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which crates of the workspace each of them may use. What is not here is forbidden.
const EDGES: &[(&str, &[&str])] = &[
    ("store", &[]),
    ("api", &[]),
    ("ublk-target", &["store"]),
    ("fuse-view", &["store"]),
    ("agent", &["store", "ublk-target", "fuse-view", "api"]),
    ("csi-shim", &["api"]),
    ("integration-tests", &["store", "api", "ublk-target", "fuse-view", "agent", "csi-shim"]),
];

/// Most lines of a source file.
const MAX_LINES: usize = 800;

/// No source has these. Each in two pieces, or this file would have them.
const LEFTOVERS: &[&str] =
    &[concat!("todo", "!("), concat!("unimplemented", "!("), concat!("dbg", "!("), concat!("#[", "ignore")];

/// Roots of home and work directories: a path below one of them is somebody's own machine.
const PRIVATE_ROOTS: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("/work", "space/"),
    concat!("/Us", "ers/"),
    concat!("/var/tmp", "/t-"),
];

/// Files of other people that are kept as they came.
const VENDORED: &[&str] = &["csi-shim/proto/csi.proto", "Cargo.lock", "LICENSE"];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata describes the workspace")
}

/// The files of the tree that people write, as paths below the root.
fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(root().join(&dir)).expect("the tree is readable") {
            let entry = entry.expect("the tree is readable");
            let path = dir.join(entry.file_name());
            let kind = entry.file_type().expect("the tree is readable");
            if kind.is_dir() && path != Path::new(".git") && !path.ends_with("target") {
                pending.push(path);
            } else if kind.is_file() && !VENDORED.iter().any(|v| path == Path::new(v)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// `(path below the root, text)` of every file that is text.
fn texts() -> Vec<(PathBuf, String)> {
    files().into_iter().filter_map(|p| Some((p.clone(), fs::read_to_string(root().join(&p)).ok()?))).collect()
}

fn sources() -> Vec<(PathBuf, String)> {
    let sources: Vec<_> =
        texts().into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "rs")).collect();
    assert!(sources.iter().any(|(path, _)| path == Path::new("tests/it/tidy.rs")), "this file was not found");
    sources
}

/// Fails with one line for each finding.
fn expect_none(findings: &[String], rule: &str) {
    assert!(findings.is_empty(), "{rule}:\n  {}", findings.join("\n  "));
}

#[test]
fn crates_use_only_the_siblings_they_may() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(members, allowed.keys().copied().collect(), "members of the workspace and of EDGES differ");
    let mut findings = Vec::new();
    for package in &metadata.packages {
        for dependency in package.dependencies.iter().filter(|d| members.contains(d.name.as_str())) {
            if !allowed[package.name.as_str()].contains(&dependency.name.as_str()) {
                findings.push(format!("{} -> {} ({})", package.name, dependency.name, dependency.kind));
            }
        }
    }
    expect_none(&findings, "edges between crates that the design forbids");
}

#[test]
fn libraries_report_errors_of_their_own() {
    let mut findings = Vec::new();
    for package in metadata().packages {
        let has_binary = package.targets.iter().any(cargo_metadata::Target::is_bin);
        if !has_binary && package.dependencies.iter().any(|d| d.name == "anyhow") {
            findings.push(package.name.to_string());
        }
    }
    expect_none(&findings, "anyhow is for binaries");
}

/// The lines of `[workspace.dependencies]`.
fn workspace_dependencies() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("there is a root manifest");
    let lines: Vec<String> = manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .map(str::to_owned)
        .collect();
    assert!(!lines.is_empty(), "the root manifest has no [workspace.dependencies]");
    lines
}

/// The name that a line of a dependency table declares, unless it is a comment, empty or a continuation.
fn declared_name(line: &str) -> Option<&str> {
    let (name, _) = line.split_once('=')?;
    let name = name.split('.').next()?.trim();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (line.starts_with(is_name) && name.chars().all(is_name)).then_some(name)
}

#[test]
fn every_dependency_has_its_reason() {
    let mut findings = Vec::new();
    // A comment speaks for the lines below it, up to an empty one.
    let mut explained = false;
    for line in workspace_dependencies() {
        if line.trim().is_empty() {
            explained = false;
        } else if line.starts_with('#') {
            explained = true;
        } else if let Some(name) = declared_name(&line) {
            let sibling = line.contains("path = ");
            if !sibling && !explained && !line.contains(" # ") {
                findings.push(name.to_owned());
            }
        }
    }
    expect_none(&findings, "dependencies without a comment that says why, in the root Cargo.toml");
}

#[test]
fn every_dependency_is_declared_once_and_used() {
    let lines = workspace_dependencies();
    let declared: BTreeSet<&str> = lines.iter().filter_map(|line| declared_name(line)).collect();
    let metadata = metadata();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let used: BTreeSet<&str> =
        metadata.packages.iter().flat_map(|p| &p.dependencies).map(|d| d.name.as_str()).collect();
    let unused: Vec<String> = declared.difference(&used).map(|name| (*name).to_owned()).collect();
    expect_none(&unused, "dependencies of the workspace that no crate uses");
    let elsewhere: Vec<String> =
        used.difference(&declared).filter(|n| !members.contains(*n)).map(|name| (*name).to_owned()).collect();
    expect_none(&elsewhere, "dependencies that are not declared in the root Cargo.toml");
}

/// `make fuzz` builds with its own lock file, which no other command looks at.
#[test]
fn the_fuzz_targets_lock_what_the_readers_need() {
    let locked = fs::read_to_string(root().join("fuse-view/fuzz/Cargo.lock")).expect("it is there");
    let all = metadata().packages;
    let needed = all.iter().filter(|package| ["fuse-view", "store"].contains(&package.name.as_str()));
    let missing: BTreeSet<String> = needed
        .flat_map(|package| &package.dependencies)
        .filter(|d| d.kind == DependencyKind::Normal && !d.optional)
        .map(|d| d.name.clone())
        .filter(|name| !locked.contains(&format!("\nname = \"{name}\"\n")))
        .collect();
    let missing: Vec<String> = missing.into_iter().collect();
    expect_none(
        &missing,
        "crates that fuse-view/fuzz/Cargo.lock lacks (in that folder: cargo update --offline -w)",
    );
}

/// Features pull in crates, too. Cargo knows, on a machine that has seen the targets' own dependencies before.
#[test]
fn the_fuzz_targets_lock_file_is_whole() {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    let manifest = root().join("fuse-view/fuzz/Cargo.toml");
    cargo.args(["metadata", "--locked", "--offline", "--format-version=1", "--manifest-path"]).arg(manifest);
    let said = cargo.output().expect("cargo runs").stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(
        !said.contains("cannot update the lock file"),
        "in that folder: cargo update --offline -w\n{said}"
    );
}

#[test]
fn source_files_are_short() {
    let findings: Vec<String> = sources()
        .iter()
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    expect_none(&findings, "source files of more than 800 lines");
}

/// `path:line: text` of each line that `matches`.
fn lines_where(texts: &[(PathBuf, String)], matches: impl Fn(&str) -> bool) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, text) in texts {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| matches(line)) {
            findings.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
        }
    }
    findings
}

/// CI sets the variable: there, a test that cannot run must fail and not pass in silence.
#[test]
fn every_skip_can_be_forbidden() {
    let skips = |line: &str| line.contains("println!(") && line.contains("skipped: ");
    let findings: Vec<String> = sources()
        .iter()
        .filter(|(_, text)| text.lines().any(skips) && !text.contains("COWSLIP_NO_SKIP"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    expect_none(&findings, "tests that are skipped even with COWSLIP_NO_SKIP=1");
}

#[test]
fn nothing_is_left_to_do() {
    let findings = lines_where(&sources(), |line| LEFTOVERS.iter().any(|word| line.contains(word)));
    expect_none(&findings, "stubs, debugging and ignored tests");
}

/// Whether the line names an absolute path below `root`, and not one that merely ends like it.
fn names_path(line: &str, root: &str) -> bool {
    line.match_indices(root).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | ')' | '*' | ':'))
    })
}

#[test]
fn no_path_is_of_somebodys_machine() {
    let findings =
        lines_where(&texts(), |line| PRIVATE_ROOTS.iter().any(|private| names_path(line, private)));
    expect_none(&findings, "paths of a home or work directory");
}

#[test]
fn the_licence_is_the_one_that_the_manifests_name() {
    let licence = fs::read_to_string(root().join("LICENSE")).expect("there is a LICENSE");
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0, January 2004"));
    for package in metadata().packages {
        assert_eq!(package.license.as_deref(), Some("Apache-2.0"), "licence of {}", package.name);
    }
}
