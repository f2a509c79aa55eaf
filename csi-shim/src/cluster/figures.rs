//! Counters for Prometheus, and whether this replica is well.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A replica that has not heard of its lease for that long hangs.
const SILENCE: Duration = Duration::from_secs(60);

/// What this replica has done. Counters only: no order between them is relied on.
pub struct Figures {
    leading: AtomicBool,
    /// When the API last answered about the lease; None: never yet.
    lease_heard: Mutex<Option<Instant>>,
    started: Instant,
    looks: Mutex<BTreeMap<(&'static str, bool), u64>>,
    freed: AtomicU64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            leading: AtomicBool::new(false),
            lease_heard: Mutex::new(None),
            started: Instant::now(),
            looks: Mutex::default(),
            freed: AtomicU64::new(0),
        }
    }
}

impl Figures {
    /// The API answered about the lease.
    pub fn lease(&self, leading: bool) {
        self.leading.store(leading, Ordering::Relaxed);
        *self.lease_heard.lock() = Some(Instant::now());
    }

    /// A loop looked at an object.
    pub fn looked(&self, work: &'static str, well: bool) {
        *self.looks.lock().entry((work, well)).or_default() += 1;
    }

    /// An object of a node that is gone was let go.
    pub fn freed(&self) {
        self.freed.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it works at all: if not, it is to be started anew.
    pub fn alive(&self) -> bool {
        self.lease_heard.lock().unwrap_or(self.started).elapsed() < SILENCE
    }

    /// Whether the API has been reached.
    pub fn ready(&self) -> bool {
        self.lease_heard.lock().is_some() && self.alive()
    }

    /// All of it, as Prometheus reads it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, u64)]| {
            let _ =
                writeln!(text, "# HELP cowslip_cluster_{name} {help}\n# TYPE cowslip_cluster_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "cowslip_cluster_{name}{labels} {value}");
            }
        };
        let leading = self.leading.load(Ordering::Relaxed);
        family("leading", "gauge", "Whether this replica leads.", &[(String::new(), leading.into())]);
        let looks = self.looks.lock();
        let sample = |(&(work, well), &count): (&(&str, bool), &u64)| {
            let result = if well { "ok" } else { "failed" };
            (format!("{{work=\"{work}\",result=\"{result}\"}}"), count)
        };
        let samples: Vec<_> = looks.iter().map(sample).collect();
        family("looks_total", "counter", "Objects looked at.", &samples);
        let freed = self.freed.load(Ordering::Relaxed);
        family(
            "freed_total",
            "counter",
            "Objects of nodes that are gone, let go.",
            &[(String::new(), freed)],
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_every_family_with_its_type() {
        let figures = Figures::default();
        figures.lease(true);
        figures.looked("labels", true);
        figures.looked("labels", true);
        figures.looked("labels", false);
        let text = figures.text();
        for line in [
            "# TYPE cowslip_cluster_leading gauge",
            "cowslip_cluster_leading 1",
            "cowslip_cluster_looks_total{work=\"labels\",result=\"ok\"} 2",
            "cowslip_cluster_looks_total{work=\"labels\",result=\"failed\"} 1",
            "cowslip_cluster_freed_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in {text}");
        }
        assert!(figures.ready());
    }

    #[test]
    fn ready_once_the_api_has_answered() {
        let figures = Figures::default();
        assert!(figures.alive() && !figures.ready());
        figures.lease(false);
        assert!(figures.ready());
    }
}
