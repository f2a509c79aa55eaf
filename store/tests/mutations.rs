//! Each rule's test fails without the rule: every deliberate bug of `store::mutation` is switched on in turn, and
//! the test that stands beside it must catch it. `make mutations` runs this.

use store::mutation::Mutation;

/// The table of hazards names each bug.
#[test]
fn the_table_names_every_bug() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/durability.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let missing: Vec<_> = Mutation::ALL
        .iter()
        .map(|m| m.describe()[0])
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "docs/durability.md does not name {missing:?}");
}

#[cfg(feature = "mutations")]
mod run {
    use std::collections::HashMap;
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};
    use store::mutation::Mutation;

    /// What a test may take to find a bug.
    const LIMIT: Duration = Duration::from_secs(60);

    /// The store's test programs by name, as cargo built them with the same features.
    fn programs() -> HashMap<String, PathBuf> {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--locked", "-p", "store", "--features", "mutations", "--no-run"])
            .args(["--message-format=json"])
            .stderr(Stdio::inherit())
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "the tests do not build");
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

    /// How long the test took to fail; an error says what it did instead.
    fn catch(program: &PathBuf, mutation: Mutation) -> Result<Duration, String> {
        let [name, _, _, filter, _] = mutation.describe();
        let begin = Instant::now();
        let output = tempfile::tempfile().map_err(|e| e.to_string())?;
        let mut test = Command::new(program)
            .arg(filter)
            // A whole name, or the beginning of some.
            .args((!filter.ends_with('_')).then_some("--exact"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("COWSLIP_MUTATION", name)
            .env("COWSLIP_CRASH_SECONDS", LIMIT.as_secs().to_string())
            // A failure here is what is wanted, not its simplest form.
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("RUST_BACKTRACE", "0")
            .stdout(output.try_clone().map_err(|e| e.to_string())?)
            .stderr(output)
            .spawn()
            .map_err(|e| e.to_string())?;
        wait(&mut test, begin).map(|()| begin.elapsed())
    }

    fn wait(test: &mut Child, begin: Instant) -> Result<(), String> {
        loop {
            match test.try_wait().map_err(|e| e.to_string())? {
                // What the test harness answers when a test failed.
                Some(status) if status.code() == Some(101) => return Ok(()),
                Some(status) if status.success() => return Err("the test passes".into()),
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
        let programs = programs();
        let chosen = std::env::var("COWSLIP_MUTATION_ONLY").ok();
        let mut out = std::io::stderr();
        let mut missed = Vec::new();
        let wanted = |m: &&Mutation| chosen.as_ref().is_none_or(|name| m.describe()[0] == name);
        for mutation in Mutation::ALL.iter().filter(wanted) {
            let [name, hazards, target, filter, _] = mutation.describe();
            let told = match catch(&programs[target], *mutation) {
                Ok(took) => format!("caught in {:.1} s", took.as_secs_f64()),
                Err(why) => {
                    missed.push(name);
                    format!("NOT CAUGHT: {why}")
                }
            };
            writeln!(out, "{name:22} {hazards:10} {target}::{filter}: {told}").expect("stderr is open");
        }
        assert!(missed.is_empty(), "not caught: {missed:?}");
    }
}
