//! A workload that is durable step by step, and what must be there when it was cut after some step. Which step does
//! what follows from a seed, so that whoever looks afterwards needs only the seed and the number of the last step.

use integration_tests::rig::{noise, random};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Steps that may have begun before the cut although nobody heard of the end of an earlier one.
const UNHEARD: u64 = 16;
/// Names of files that are not yet in their place.
const TEMPORARY: &str = "new-";

enum Step {
    /// A whole new content takes the place of the old one at once.
    Replace(String, Vec<u8>),
    Append(String, Vec<u8>),
    Rename(String, String),
    Remove(String),
}

/// The files after a number of steps.
pub struct Files {
    seed: u64,
    steps: u64,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// No files, no steps.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: 0, contents: BTreeMap::new() }
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn next(&self) -> Step {
        let mut state = self.seed ^ self.steps.wrapping_mul(0x0100_0000_01b3);
        let mut below = |limit: u64| random(&mut state) % limit;
        let name = format!("file-{}", below(24));
        let length = usize::try_from(1 + below(48 << 10)).expect("a small number");
        let data = || noise(self.seed ^ !self.steps, length);
        let old = self.contents.get(&name).map(Vec::len);
        match (below(10), old) {
            (0, Some(_)) => Step::Remove(name),
            (1, Some(_)) => Step::Rename(name, format!("file-{}", below(24))),
            (2..6, Some(length)) if length < 256 << 10 => Step::Append(name, data()),
            _ => Step::Replace(name, data()),
        }
    }

    fn apply(&mut self, step: Step) -> Vec<String> {
        self.steps += 1;
        match step {
            Step::Replace(name, data) => {
                self.contents.insert(name.clone(), data);
                vec![name]
            }
            Step::Append(name, data) => {
                self.contents.entry(name.clone()).or_default().extend(data);
                vec![name]
            }
            Step::Rename(from, to) => {
                let data = self.contents.remove(&from).expect("only files that are there are renamed");
                self.contents.insert(to.clone(), data);
                vec![from, to]
            }
            Step::Remove(name) => {
                self.contents.remove(&name);
                vec![name]
            }
        }
    }

    /// Does the next step in a directory. When this returns, what it did must survive.
    pub fn step_in(&mut self, dir: &Path) -> io::Result<()> {
        let step = self.next();
        match &step {
            Step::Replace(name, data) => {
                let new = dir.join(format!("{TEMPORARY}{name}"));
                let mut file = File::create(&new)?;
                file.write_all(data)?;
                file.sync_all()?;
                fs::rename(new, dir.join(name))?;
            }
            Step::Append(name, data) => {
                let mut file = File::options().append(true).open(dir.join(name))?;
                file.write_all(data)?;
                file.sync_data()?;
            }
            Step::Rename(from, to) => fs::rename(dir.join(from), dir.join(to))?,
            Step::Remove(name) => fs::remove_file(dir.join(name))?,
        }
        File::open(dir)?.sync_all()?;
        self.apply(step);
        Ok(())
    }

    /// Fails the test unless the directory holds what `steps` steps left. Files of the steps after them may be
    /// in between; how many files were compared.
    #[track_caller]
    pub fn check(seed: u64, steps: u64, dir: &Path) -> usize {
        let mut files = Self::new(seed);
        while files.steps < steps {
            files.apply(files.next());
        }
        let expected = files.contents.clone();
        let mut unsettled = BTreeSet::new();
        for _ in 0..UNHEARD {
            let step = files.next();
            unsettled.extend(files.apply(step));
        }
        let there: BTreeSet<String> = fs::read_dir(dir)
            .expect("the directory was fsynced")
            .map(|entry| entry.expect("it can be listed").file_name().into_string().expect("a plain name"))
            .collect();
        let names: BTreeSet<&String> = there.iter().chain(expected.keys()).collect();
        let settled =
            names.into_iter().filter(|name| !unsettled.contains(*name) && !name.starts_with(TEMPORARY));
        let mut compared = 0;
        for name in settled {
            let found = fs::read(dir.join(name)).ok();
            let (found_length, length) = (found.as_ref().map(Vec::len), expected.get(name).map(Vec::len));
            assert!(
                found.as_ref() == expected.get(name),
                "{} of seed {seed} after {steps} steps: {found_length:?} bytes, not the {length:?} that were fsynced",
                dir.join(name).display()
            );
            compared += 1;
        }
        compared
    }
}
