//! `cowslip events`.

use super::{Context, args::EventsArgs, failure::Result, model::Event, names};

/// Shows what happened, and with `--follow` what happens, until Ctrl-C.
pub fn run(context: &mut Context, args: &EventsArgs) -> Result<()> {
    let volume = args.volume.as_deref().map(names::volume).transpose()?.unwrap_or_default();
    let agent = context.agent()?;
    let out = &mut context.out;
    agent.events(args.follow, &volume, |event| {
        if out.json {
            out.json_line(&event)?;
        } else {
            let line = super::output::escape(describe(&event).as_bytes());
            out.line(&line)?;
        }
        // Whoever follows wants each event now.
        if args.follow { out.flush() } else { Ok(()) }
    })
}

fn describe(event: &Event) -> String {
    let subject = match (&event.volume, &event.snapshot) {
        (Some(volume), Some(snapshot)) => format!(" {volume}@{snapshot}"),
        (Some(volume), None) => format!(" {volume}"),
        (None, _) => String::new(),
    };
    format!("{} {:7} {}{subject}: {}", event.time, event.severity, event.kind, event.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let event = Event {
            sequence: 1,
            time: "2026-01-01T00:00:00Z".into(),
            severity: "info",
            kind: "snapshot_created".into(),
            volume: Some("db".into()),
            snapshot: Some("monday".into()),
            message: "snapshot taken".into(),
        };
        assert_eq!(
            describe(&event),
            "2026-01-01T00:00:00Z info    snapshot_created db@monday: snapshot taken"
        );
        let pool =
            Event { volume: None, snapshot: None, severity: "warning", kind: "pool_low".into(), ..event };
        assert_eq!(describe(&pool), "2026-01-01T00:00:00Z warning pool_low: snapshot taken");
    }
}
