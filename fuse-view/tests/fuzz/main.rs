//! What the fuzz targets found once is fine now; and some inputs made by chance, without coverage to guide them.
//!
//! `make fuzz SECONDS=60` gives every target that long with libFuzzer. What it finds becomes a file in
//! `fuzz/found/TARGET` with the fix. `FUZZ_ROUNDS` and `FUZZ_SEED` ask here for more inputs and for others.

#[allow(clippy::cast_possible_truncation)] // numbers of inputs are taken modulo what there is
#[allow(dead_code)]
#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use fuzz::{NAMES, Target};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Runs one input; a panic says which.
fn run(target: &Target, input: &[u8], what: &str) -> usize {
    let done = catch_unwind(AssertUnwindSafe(|| target.run(input).0));
    done.unwrap_or_else(|_| panic!("{} {what}", target.name))
}

#[test]
fn the_images_are_whole() {
    for target in NAMES.map(Target::named) {
        for image in 0..target.images.len() {
            let (good, bad) = target.run(&[u8::try_from(image).unwrap()]);
            assert!(good > 20, "{} {image}: {good} answers", target.name);
            // A disk has a partition without a file system in it.
            let allowed = if target.name == "containers" { 2 } else { 0 };
            assert!(bad <= allowed, "{} {image}: {bad} errors", target.name);
        }
    }
}

#[test]
fn what_was_found_once() {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/found");
    for target in NAMES.map(Target::named) {
        for file in std::fs::read_dir(found.join(target.name)).into_iter().flatten() {
            let path = file.unwrap().path();
            run(&target, &std::fs::read(&path).unwrap(), &path.display().to_string());
        }
    }
}

#[test]
fn inputs_made_by_chance() {
    let first = number("FUZZ_SEED", 1);
    for target in NAMES.map(Target::named) {
        let (mut input, mut answers) = (Vec::new(), 0);
        for seed in first..first + number("FUZZ_ROUNDS", 150) {
            if seed % 10 == 1 {
                input.clear();
            }
            target.mutate(&mut input, seed, |bytes| bytes.rotate_left(1));
            answers += run(&target, &input, &format!("FUZZ_SEED={seed}: {input:02x?}"));
        }
        assert!(answers > 0, "{}: nothing was even opened", target.name);
    }
}
