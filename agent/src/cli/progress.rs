//! How far long work has come, on stderr: a bar on a terminal, a line every few seconds elsewhere, nothing
//! with `-q`.

use super::sizes::human;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown with rates.
    Bytes,
    /// Things: blocks, files, snapshots.
    Items,
}

enum Display {
    Silent,
    Bar(ProgressBar),
    Lines { last: Instant },
}

/// The progress of one command.
pub struct Progress {
    display: Display,
    what: &'static str,
    unit: Unit,
    total: Option<u64>,
}

impl Progress {
    /// Shows progress of `what` ("import db"), of `total` where that is known.
    pub fn new(what: &'static str, unit: Unit, total: Option<u64>, quiet: bool) -> Self {
        let display = if quiet {
            Display::Silent
        } else if std::io::stderr().is_terminal() {
            Display::Bar(bar(what, unit, total))
        } else {
            Display::Lines { last: Instant::now() }
        };
        Self { display, what, unit, total }
    }

    /// `done` is everything so far.
    pub fn set(&mut self, done: u64) {
        match &mut self.display {
            Display::Silent => {}
            Display::Bar(bar) => bar.set_position(done),
            Display::Lines { last } => {
                if last.elapsed() >= LINE_INTERVAL {
                    *last = Instant::now();
                    eprintln!("{}", line(self.what, self.unit, done, self.total));
                }
            }
        }
    }

    /// Sets a total that became known on the way.
    pub fn set_total(&mut self, total: u64) {
        self.total = Some(total);
        if let Display::Bar(bar) = &self.display {
            bar.set_length(total);
            bar.set_style(style(self.unit, true));
        }
    }
}

impl Drop for Progress {
    /// A bar leaves nothing behind: what was done is told by the command.
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, unit: Unit, total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    bar.set_style(style(unit, total.is_some()));
    bar.set_message(what);
    bar
}

fn style(unit: Unit, has_total: bool) -> ProgressStyle {
    let template = match (unit, has_total) {
        (Unit::Bytes, true) => {
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}"
        }
        (Unit::Bytes, false) => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
        (Unit::Items, true) => "{msg} {wide_bar} {pos}/{len} {eta}",
        (Unit::Items, false) => "{msg} {spinner} {pos}",
    };
    // The templates above are constants; one that did not parse would show as the default bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A plain line of progress.
fn line(what: &str, unit: Unit, done: u64, total: Option<u64>) -> String {
    let show = |n: u64| if unit == Unit::Bytes { human(n) } else { n.to_string() };
    match total {
        Some(total) if total > 0 => {
            let percent = u128::from(done) * 100 / u128::from(total);
            format!("{what}: {} of {} ({percent}%)", show(done), show(total))
        }
        _ => format!("{what}: {}", show(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines() {
        assert_eq!(line("import", Unit::Bytes, 1 << 30, Some(4 << 30)), "import: 1G of 4G (25%)");
        assert_eq!(line("import", Unit::Bytes, 1 << 30, None), "import: 1G");
        assert_eq!(line("check", Unit::Items, 5, Some(0)), "check: 5");
        assert_eq!(
            line("check", Unit::Items, u64::MAX, Some(u64::MAX)),
            format!("check: {0} of {0} (100%)", u64::MAX)
        );
    }

    #[test]
    fn every_template_parses() {
        for unit in [Unit::Bytes, Unit::Items] {
            for has_total in [true, false] {
                let bar = bar("x", unit, has_total.then_some(3));
                bar.set_draw_target(ProgressDrawTarget::hidden());
                bar.set_position(1);
            }
        }
        assert!(
            ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {eta}")
                .is_ok()
        );
    }
}
