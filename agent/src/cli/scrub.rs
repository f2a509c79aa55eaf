//! `cowslip scrub`: has the agent compare everything that has a checksum.

use super::{
    Context,
    args::ScrubArgs,
    failure::{Failure, Kind, Result},
    interrupt,
    progress::{Progress, Unit},
    sizes,
};
use api::v1;
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    complete: bool,
    checked_bytes: u64,
    damaged_blocks: u64,
}

/// Runs until the end of the pool, or until a signal; the next run goes on there.
pub fn run(context: &mut Context, args: &ScrubArgs) -> Result<()> {
    let bytes_per_second = args.rate.as_deref().map(sizes::parse).transpose()?.unwrap_or_default();
    let agent = context.agent()?;
    interrupt::install()?;
    let mut progress = Progress::new("scrub", Unit::Items, None, context.out.quiet);
    let mut last = v1::ScrubProgress::default();
    agent.scrub(v1::ScrubRequest { bytes_per_second, restart: args.restart }, |step| {
        if last.segments == 0 {
            progress.set_total(step.segments);
        }
        progress.set(step.segment);
        last = step;
    })?;
    drop(progress);
    let report = Report {
        complete: last.complete,
        checked_bytes: last.checked_bytes,
        damaged_blocks: last.damaged_blocks,
    };
    if context.out.json {
        context.out.json_line(&report)?;
    }
    context.out.flush()?;
    if interrupt::check().is_err() {
        let done = format!("{} of {} MiB of the pool", last.segment, last.segments);
        return Err(Failure::interrupted().at(done).hint("`cowslip scrub` goes on there"));
    }
    if !last.complete {
        return Err(Failure::new(Kind::Failed, "the agent stopped before the scrub was done")
            .hint("`cowslip scrub` begins again when it is back"));
    }
    if last.damaged_blocks > 0 {
        let what = format!("damage found: {} blocks of 4 KiB", last.damaged_blocks);
        return Err(Failure::new(Kind::Damaged, what).hint(
            "`cowslip events` names the volumes and snapshots; restore what they hold from elsewhere",
        ));
    }
    if !context.out.json {
        context.out.note(&format!("{} compared, no damage", sizes::human(last.checked_bytes)));
    }
    Ok(())
}
