//! The power is cut under a workload that fsyncs, over and over; whatever was told to be durable must be there.
//! `inside/power.rs` is what runs in the machine.

use integration_tests::rig::random;
use integration_tests::{root, seed, times};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A machine that hangs is killed after it, and the test fails. Only there so that a failure ends.
const LIMIT_S: u32 = 300;

/// A machine at work.
struct Machine {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Machine {
    fn boot(dir: &Path, pool: &Path, variables: &[(&str, String)]) -> Self {
        let tests =
            std::env::var_os("COWSLIP_KERNEL_TESTS").expect("`make test-kernel` says where its tests are");
        // Whatever ends this test ends the machine.
        let mut run = Command::new("setpriv");
        run.args(["--pdeathsig", "KILL"]).arg(root().join("tests/kernel/run"));
        run.arg("--limit").arg(LIMIT_S.to_string()).arg("--disk").arg(pool).arg(tests);
        run.args(["--exact", "power::until_the_power_is_cut", "--nocapture"]);
        run.envs(variables.iter().map(|(name, value)| (name, value)));
        // A group of its own, to be killed as a whole.
        run.env("COWSLIP_KERNEL_TMP", dir).process_group(0);
        run.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = run.spawn().expect("the harness is there");
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)).ok();
        });
        Self { child, lines, heard: Vec::new() }
    }

    /// Listens until `until` is said; false: the machine ended, or `limit` passed, before it was.
    fn listen(&mut self, until: Option<&str>, limit: Duration) -> bool {
        let started = Instant::now();
        // It may never fall silent.
        while started.elapsed() < limit {
            match self.lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
                Ok(line) => {
                    // The test runner may have begun the line.
                    let said = until.is_some_and(|until| line.ends_with(until));
                    self.heard.push(line);
                    if said {
                        return true;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
        }
        false
    }

    fn cut_the_power(&mut self) {
        let group = format!("-{}", self.child.id());
        // It is gone already if the machine ended by itself.
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }

    /// The last of each thing that was told to be durable.
    fn durable(&self) -> String {
        let done = self.heard.iter().filter_map(|line| line.strip_prefix("done ")?.split_once('='));
        let last: BTreeMap<&str, &str> = done.collect();
        last.iter().map(|(what, which)| format!("{what}={which}")).collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_the_power();
    }
}

#[test]
fn what_was_fsynced_survives_power_cuts() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
    let pool = dir.path().join("pool.img");
    File::create(&pool).and_then(|file| file.set_len(4 << 30)).expect("there is room");
    let (seed, cuts) = (seed(), times("COWSLIP_CUTS", 2));
    let mut random_state = seed;
    let mut durable = String::new();
    for round in 0..=cuts {
        let last = round == cuts;
        let mut variables = vec![
            ("COWSLIP_ROUND", round.to_string()),
            ("COWSLIP_SEED", seed.to_string()),
            ("COWSLIP_HEARD", durable.clone()),
        ];
        if last {
            variables.push(("COWSLIP_LAST", "1".into()));
        }
        let mut machine = Machine::boot(dir.path(), &pool, &variables);
        let patience = Duration::from_secs(LIMIT_S.into());
        let checked = machine.listen(Some("checked"), patience);
        assert!(checked, "round {round}, seed {seed}, after [{durable}]:\n{}", machine.heard.join("\n"));
        if last {
            let finished = machine.listen(Some("finished"), patience);
            assert!(finished, "the last round, seed {seed}:\n{}", machine.heard.join("\n"));
            break;
        }
        // Work, and the cut at a random moment of it.
        let ended = machine.listen(None, Duration::from_millis(200 + random(&mut random_state) % 2500));
        assert!(!ended);
        let alive = machine.child.try_wait().expect("it can be asked").is_none();
        assert!(alive, "round {round}, seed {seed}:\n{}", machine.heard.join("\n"));
        machine.cut_the_power();
        // What was still on its way.
        machine.listen(None, Duration::from_millis(200));
        durable = machine.durable();
        println!("round {round}: cut after [{durable}]");
    }
    println!("{cuts} power cuts, seed {seed}");
}
