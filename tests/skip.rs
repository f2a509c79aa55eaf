//! How a test says that it cannot run here. Tests of other crates include this file by its path.

/// Set where every test must run, as in CI: what a machine lacks fails the test that needs it.
const NO_SKIP: &str = "COWSLIP_NO_SKIP";

/// Says that this test does not run here, and why; the test returns after it. Say how to get what is missing.
///
/// # Panics
/// If `COWSLIP_NO_SKIP` is set to anything but `0`.
pub fn skip(why: &str) {
    let forbidden = std::env::var_os(NO_SKIP).is_some_and(|value| value != "0");
    assert!(!forbidden, "this test may not be skipped ({NO_SKIP} is set): {why}");
    println!("skipped: {why}");
}
