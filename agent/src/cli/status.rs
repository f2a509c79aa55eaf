//! `cowslip status`.

use super::{
    Context,
    args::StatusArgs,
    backend::{AgentBackend, Backend, PoolBackend},
    failure::Result,
    model::{Pool, Status},
    sizes::human,
    times::parse_duration,
};

/// Shows the agent, the pool and what they hold.
pub fn run(context: &mut Context, args: &StatusArgs) -> Result<()> {
    let status = match (&args.wait, &context.global.pool) {
        (Some(wait), None) => {
            let patience = parse_duration(wait)?;
            AgentBackend::connect_patiently(&context.socket(), patience)?.status()?
        }
        (Some(_), Some(_)) => {
            context.refuse_pool("--wait waits for an agent, --pool reads without one")?;
            return Ok(());
        }
        (None, Some(path)) => PoolBackend::open(path)?.status()?,
        (None, None) => AgentBackend::connect(&context.socket())?.status()?,
    };
    let properties = describe(&status);
    context.out.object(&status, &properties)?;
    if !context.out.json {
        context.out.flush()?;
        for warning in &status.warnings {
            context.out.warn(warning);
        }
    }
    Ok(())
}

/// `3.1G of 100G used, 96.9G free`.
pub fn room(pool: &Pool) -> String {
    format!("{} of {} used, {} free", human(pool.used_bytes), human(pool.size_bytes), human(pool.free_bytes))
}

fn describe(status: &Status) -> Vec<(&'static str, String)> {
    let mut properties = Vec::new();
    match &status.agent {
        Some(agent) => {
            properties
                .push(("agent", format!("{}, pid {}, since {}", agent.version, agent.pid, agent.started_at)));
            let reason = &agent.transport_reason;
            let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            properties.push(("transport", format!("{}{why}", agent.transport)));
            let dir = agent.snapshots_dir.as_deref().unwrap_or("not mounted");
            properties.push(("snapshots at", dir.to_owned()));
        }
        None => properties.push(("agent", "not asked: the pool was read without one".to_owned())),
    }
    properties.push(("pool", format!("{}, {}", status.pool.path, status.pool.state)));
    properties.push(("room", room(&status.pool)));
    properties.push(("volumes", format!("{}, {} attached", status.volumes, status.attached)));
    properties.push(("snapshots", status.snapshots.to_string()));
    let scrubbed = status.pool.scrubbed_at.as_ref().map_or(String::new(), |at| format!(", scrubbed {at}"));
    properties.push(("checksums", format!("{} have one{scrubbed}", human(status.pool.sealed_bytes))));
    if let Some(doing) = &status.pool.resequencing {
        let moved = human(status.pool.resequenced_bytes);
        properties.push(("order", format!("{doing}, {moved} put back in order")));
    }
    if status.pending_deletions > 0 {
        properties.push(("deletions", format!("{} being freed", status.pending_deletions)));
    }
    properties
}
