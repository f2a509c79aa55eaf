//! Settings of a block device's request queue.

use std::fs;
use std::path::Path;

/// Sets an attribute of /sys/block/DEVICE/queue to `value` unless it has that already: each write makes the kernel
/// drain the queue and wait for a grace period, some 25 ms in which nothing else happens. A refusal is logged only; the
/// device works with any setting.
pub(crate) fn set(attribute: &Path, value: &str) {
    let done = fs::read_to_string(attribute).and_then(|now| match is(&now, value) {
        true => Ok(()),
        false => fs::write(attribute, value),
    });
    if let Err(error) = done {
        tracing::debug!(attribute = %attribute.display(), %error, "a queue setting was refused");
    }
}

/// Whether what the attribute shows says that it is `value`. Of several choices the one in brackets is in force.
fn is(shown: &str, value: &str) -> bool {
    let shown = shown.trim_end();
    shown == value
        || shown
            .split(' ')
            .any(|choice| choice.strip_prefix('[').and_then(|c| c.strip_suffix(']')) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_choice_in_force_counts() {
        assert!(is("[none] mq-deadline kyber\n", "none"));
        assert!(!is("none [mq-deadline]\n", "none"));
        assert!(is("512\n", "512") && !is("1280\n", "512"));
        // Where the kernel has no scheduler at all.
        assert!(is("none\n", "none"));
    }

    #[test]
    fn what_is_so_already_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let attribute = dir.path().join("scheduler");
        fs::write(&attribute, "[none] bfq\n").unwrap();
        set(&attribute, "none");
        assert_eq!(fs::read_to_string(&attribute).unwrap(), "[none] bfq\n");
        set(&attribute, "bfq");
        assert_eq!(fs::read_to_string(&attribute).unwrap(), "bfq");
    }
}
