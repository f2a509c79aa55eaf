//! Tests that run inside the test kernel, as root, one after the other: what a host's own kernel may not have or would
//! not forgive. `make test-kernel` builds and boots it. They use the transport that `COWSLIP_TEST_TRANSPORT` names.

mod agents;
mod devices;
mod gaps;
mod kills;
mod mkfs;
mod space;
mod stacks;

/// How often something is done: `short`, or what the variable says for a long run.
fn times(variable: &str, short: u32) -> u32 {
    let count = std::env::var(variable).ok().map(|value| value.parse().expect("a count"));
    count.unwrap_or(short)
}

/// Start of random numbers: the same each time, or what `COWSLIP_SEED` says.
fn seed() -> u64 {
    std::env::var("COWSLIP_SEED").ok().map_or(5, |value| value.parse().expect("a number"))
}
