// What every target does; each says its name as TARGET.

use fuse_view_fuzz::Target;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use std::sync::LazyLock;

static IMAGES: LazyLock<Target> = LazyLock::new(|| Target::named(TARGET));

fuzz_target!(|input: &[u8]| {
    IMAGES.run(input);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut input = data[..size].to_vec();
    IMAGES.mutate(&mut input, u64::from(seed), |bytes| {
        fuzzer_mutate(bytes, bytes.len(), bytes.len());
    });
    input.truncate(max_size);
    data[..input.len()].copy_from_slice(&input);
    input.len()
});
