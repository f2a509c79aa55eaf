//! Each rule's test fails without the rule: every deliberate bug of `store::mutation` is switched on in turn, and
//! the test that stands beside it must catch it, or the compiler. `make mutations` runs this.

use store::mutation::Mutation;

#[cfg(feature = "mutations")]
#[path = "../../tests/skip.rs"]
mod skip;

/// The table of hazards names each bug.
#[test]
fn the_table_names_every_bug() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/durability.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let missing: Vec<_> = Mutation::ALL
        .iter()
        .map(|m| m.bug().name)
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/durability.md does not name {missing:?}");
}

/// Each hazard has a bug.
#[test]
fn every_hazard_has_a_bug() {
    let bugs: Vec<&str> = Mutation::ALL.iter().flat_map(|m| m.bug().hazards.split(", ")).collect();
    let missing: Vec<_> = (1..=37).map(|n| format!("H{n}")).filter(|h| !bugs.contains(&h.as_str())).collect();
    assert!(missing.is_empty(), "no deliberate bug shows {missing:?}");
}

#[cfg(feature = "mutations")]
mod run {
    use super::skip::skip;
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::{Read, Seek, Write};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Output, Stdio};
    use std::time::{Duration, Instant};
    use store::mutation::{Bug, COMPILER, Mutation};

    /// What a test may take to find a bug.
    const LIMIT: Duration = Duration::from_secs(60);

    /// How a bug was dealt with.
    enum Found {
        Caught,
        /// Its test does not run on this machine, and says why.
        Skipped(String),
    }

    fn cargo(command: &str, package: &str) -> Command {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([command, "--locked", "-p", package, "--features", "mutations"]);
        cargo
    }

    /// A package's test programs by name, built with its bugs in it.
    fn programs(package: &str) -> BTreeMap<String, PathBuf> {
        let output = cargo("test", package)
            .args(["--no-run", "--message-format=json"])
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "the tests of {package} do not build");
        let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
        let artifacts = text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line"));
        artifacts
            .filter_map(|a: serde_json::Value| {
                let target = &a["target"];
                let name = if target["kind"][0] == "lib" { "lib" } else { target["name"].as_str()? };
                Some((name.to_owned(), PathBuf::from(a["executable"].as_str()?)))
            })
            .collect()
    }

    /// The package must not compile, for the one reason that stands beside the bug.
    fn catch_by_compiler(bug: &Bug) -> Result<Found, String> {
        let cfg = format!("mutation=\"{}\"", bug.name);
        // Only this crate is compiled with it, and nothing is left that another build would take for its own.
        let rustc = ["--lib", "--profile", "check", "--", "--cfg", &cfg];
        let output: Output = cargo("rustc", bug.package).args(rustc).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        let mut errors = said
            .lines()
            .filter(|line| line.starts_with("error") && !line.starts_with("error: could not compile"));
        match (errors.next(), errors.next()) {
            _ if output.status.success() => Err("it compiles".into()),
            (Some(error), None) if error.contains(bug.filter) => Ok(Found::Caught),
            _ => Err(format!("the compiler says something else:\n{said}")),
        }
    }

    fn catch_by_test(program: &Path, bug: &Bug) -> Result<Found, String> {
        let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name(bug.package);
        let mut output = tempfile::tempfile().map_err(|e| e.to_string())?;
        let mut test = Command::new(program)
            .arg(bug.filter)
            // A whole name, or the beginning of some.
            .args((!bug.filter.ends_with('_')).then_some("--exact"))
            .current_dir(manifest_dir)
            .env("COWSLIP_MUTATION", bug.name)
            .env("COWSLIP_CRASH_SECONDS", LIMIT.as_secs().to_string())
            // A failure here is what is wanted, not its simplest form.
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("RUST_BACKTRACE", "0")
            // What cannot run fails otherwise, and would count as caught.
            .env_remove("COWSLIP_NO_SKIP")
            .stdout(output.try_clone().map_err(|e| e.to_string())?)
            .stderr(output.try_clone().map_err(|e| e.to_string())?)
            .spawn()
            .map_err(|e| e.to_string())?;
        let passed = wait(&mut test)?;
        let mut said = String::new();
        output.rewind().and_then(|()| output.read_to_string(&mut said)).map_err(|e| e.to_string())?;
        match said.lines().find_map(|line| line.strip_prefix("skipped: ")) {
            Some(why) => Ok(Found::Skipped(why.to_owned())),
            None if passed => Err("the test passes".into()),
            None => Ok(Found::Caught),
        }
    }

    /// Whether the test passed.
    fn wait(test: &mut Child) -> Result<bool, String> {
        let begin = Instant::now();
        loop {
            match test.try_wait().map_err(|e| e.to_string())? {
                // What the test harness answers when a test failed.
                Some(status) if status.code() == Some(101) => return Ok(false),
                Some(status) if status.success() => return Ok(true),
                Some(status) => return Err(format!("the test ends with {status}")),
                None if begin.elapsed() > LIMIT * 3 => {
                    let _ = test.kill();
                    let _ = test.wait();
                    return Err("the test hangs".into());
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    #[test]
    fn every_bug_is_caught() {
        let chosen = std::env::var("COWSLIP_MUTATION_ONLY").ok();
        let bugs: Vec<Bug> = Mutation::ALL
            .iter()
            .map(|m| m.bug())
            .filter(|bug| chosen.as_ref().is_none_or(|name| bug.name == name))
            .collect();
        let tested: BTreeSet<_> = bugs.iter().filter(|b| b.target != COMPILER).map(|b| b.package).collect();
        let programs: BTreeMap<_, _> =
            tested.into_iter().map(|package| (package, programs(package))).collect();
        let mut out = std::io::stderr();
        let mut missed = Vec::new();
        for bug in bugs {
            let begin = Instant::now();
            let found = match bug.target {
                COMPILER => catch_by_compiler(&bug),
                target => catch_by_test(&programs[bug.package][target], &bug),
            };
            let told = match found {
                Ok(Found::Caught) => format!("caught in {:.1} s", begin.elapsed().as_secs_f64()),
                Ok(Found::Skipped(why)) => {
                    skip(&format!("{}: {why}", bug.name));
                    format!("skipped: {why}")
                }
                Err(why) => {
                    missed.push(bug.name);
                    format!("NOT CAUGHT: {why}")
                }
            };
            let Bug { name, hazards, package, target, filter, .. } = bug;
            writeln!(out, "{name:22} {hazards:10} {package} {target}::{filter}: {told}")
                .expect("stderr is open");
        }
        assert!(missed.is_empty(), "not caught: {missed:?}");
    }
}
