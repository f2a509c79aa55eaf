//! The help of every command is what `tests/golden/help` says. `COWSLIP_UPDATE_GOLDEN=1 cargo test -p agent
//! --test cli_help` writes it anew.

mod common;

use common::run;
use std::{collections::BTreeSet, fs, path::PathBuf};

/// Every command with its words; the list is checked against the help itself below.
const COMMANDS: &[&str] = &[
    "",
    "pool",
    "pool init",
    "pool show",
    "pool check",
    "pool dump",
    "agent",
    "status",
    "volume",
    "volume create",
    "volume list",
    "volume show",
    "volume rename",
    "volume resize",
    "volume delete",
    "volume attach",
    "volume detach",
    "volume import",
    "volume export",
    "snapshot",
    "snapshot create",
    "snapshot list",
    "snapshot show",
    "snapshot delete",
    "clone",
    "rollback",
    "ls",
    "cat",
    "find",
    "versions",
    "diff",
    "restore",
    "export",
    "mount",
    "umount",
    "scrub",
    "events",
    "doctor",
    "completions",
    "man",
];

fn golden_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help")
}

fn help_of(command: &str) -> String {
    run(command.split_whitespace().chain(["--help"])).with(0).stdout
}

fn file_of(command: &str) -> String {
    let name = if command.is_empty() { "cowslip".to_owned() } else { command.replace(' ', "-") };
    format!("{name}.txt")
}

#[test]
fn help_is_the_golden_one() {
    let update = std::env::var_os("COWSLIP_UPDATE_GOLDEN").is_some();
    for command in COMMANDS {
        let path = golden_dir().join(file_of(command));
        let help = help_of(command);
        if update {
            fs::write(&path, &help).unwrap();
        }
        let golden = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(help, golden, "help of '{command}' differs from {}", path.display());
    }
}

#[test]
fn no_golden_file_is_left_over() {
    let expected: BTreeSet<String> = COMMANDS.iter().map(|command| file_of(command)).collect();
    let found: BTreeSet<String> = fs::read_dir(golden_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, expected);
}

/// The names under `Commands:` in a help text.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let named = lines
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    named.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn every_command_is_known_here_and_has_an_example() {
    let mut found = vec![String::new()];
    for top in subcommands(&help_of("")) {
        found.extend(subcommands(&help_of(&top)).into_iter().map(|name| format!("{top} {name}")));
        found.push(top);
    }
    let found: BTreeSet<String> = found.into_iter().collect();
    let expected: BTreeSet<String> = COMMANDS.iter().map(|command| (*command).to_owned()).collect();
    assert_eq!(found, expected);
    for command in COMMANDS {
        let help = help_of(command);
        if subcommands(&help).is_empty() {
            let example = format!("cowslip {command}");
            let examples = help.split("Examples:").nth(1).unwrap_or_default();
            let last = example.rsplit(' ').next().unwrap_or_default();
            assert!(examples.contains(last), "no example of '{command}': {help}");
        }
        assert!(
            help.lines().all(|line| line.chars().count() <= 120),
            "a long line in the help of '{command}'"
        );
    }
}

#[test]
fn the_version() {
    let version = run(["--version"]).with(0).stdout;
    assert_eq!(version, format!("cowslip {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(["completions", shell]).with(0).stdout;
        for word in ["rollback", "snapshot", "--no-freeze"] {
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    run(["completions", "tcsh"]).with(2);
}

#[test]
fn manual_pages_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("man1");
    run(["-q".as_ref(), "man".as_ref(), target.as_os_str()]).with(0);
    for page in ["cowslip.1", "cowslip-volume.1", "cowslip-volume-create.1", "cowslip-ls.1"] {
        let text = fs::read_to_string(target.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH"), "{page}");
    }
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    run(["man".as_ref(), file.as_os_str()]).with(4);
}
