//! `cowslip snapshot …`.

use super::{
    Context,
    args::{SnapshotCommand, SnapshotCreateArgs, SnapshotDeleteArgs},
    backend::{self, AgentBackend, Backend},
    failure::{Failure, Result},
    interrupt,
    model::Snapshot,
    names::{self, LATEST, SnapshotName},
    output::{left, right},
    progress::{Progress, Unit},
    sizes::human,
    times::minute,
    volume::{describe_labels, exact_size, labels},
};
use api::v1;
use std::collections::HashSet;

/// Snapshots deleted in one request; more are deleted in several, with progress.
const DELETE_BATCH: usize = 16;

/// Runs one of the snapshot commands.
pub fn run(context: &mut Context, command: &SnapshotCommand) -> Result<()> {
    match command {
        SnapshotCommand::Create(args) => create(context, args),
        SnapshotCommand::List(args) => {
            let volume = args.volume.as_deref().map(names::volume).transpose()?;
            let snapshots = context.reader()?.snapshots(volume.as_deref())?;
            list(context, &snapshots)
        }
        SnapshotCommand::Show(args) => show(context, &SnapshotName::parse(&args.snapshot)?),
        SnapshotCommand::Delete(args) => delete(context, args),
    }
}

fn create(context: &mut Context, args: &SnapshotCreateArgs) -> Result<()> {
    let names: Vec<SnapshotName> =
        args.snapshots.iter().map(|text| SnapshotName::parse_new(text)).collect::<Result<_>>()?;
    let mut volumes = HashSet::new();
    if let Some(twice) = names.iter().find(|name| !volumes.insert(name.volume.as_str())) {
        return Err(Failure::usage(format!("volume {} is given twice", twice.volume))
            .hint("one consistent point is one snapshot of each volume"));
    }
    let request = v1::CreateSnapshotsRequest {
        snapshots: names.iter().map(backend::reference).collect(),
        freeze: !args.no_freeze,
        labels: labels(&args.labels)?,
    };
    let answer = context.agent()?.call(|mut client| async move { client.create_snapshots(request).await })?;
    for warning in &answer.warnings {
        context.out.warn(warning);
    }
    let snapshots: Vec<Snapshot> = answer.snapshots.into_iter().map(Snapshot::from).collect();
    if context.out.json {
        return context.out.json_line(&snapshots);
    }
    for snapshot in &snapshots {
        context.out.note(&format!(
            "created snapshot {}@{}, consistency {}",
            snapshot.volume, snapshot.name, snapshot.consistency
        ));
    }
    Ok(())
}

fn list(context: &mut Context, snapshots: &[Snapshot]) -> Result<()> {
    let columns = [
        left("NAME"),
        right("SIZE"),
        right("EXCLUSIVE"),
        left("CONSISTENCY"),
        left("CREATED"),
        left("CLONES"),
    ];
    context.out.list(snapshots, &columns, |snapshot| {
        let clones = if snapshot.clones.is_empty() { "-".to_owned() } else { snapshot.clones.join(",") };
        vec![
            format!("{}@{}", snapshot.volume, snapshot.name),
            human(snapshot.size_bytes),
            human(snapshot.exclusive_bytes),
            snapshot.consistency.clone(),
            minute(&snapshot.created_at),
            clones,
        ]
    })
}

fn show(context: &mut Context, name: &SnapshotName) -> Result<()> {
    let snapshot = context.reader()?.snapshot(name)?;
    let mut properties = vec![
        ("name", format!("{}@{}", snapshot.volume, snapshot.name)),
        ("id", snapshot.id.to_string()),
        ("size", exact_size(snapshot.size_bytes)),
        ("exclusive", exact_size(snapshot.exclusive_bytes)),
        ("consistency", snapshot.consistency.clone()),
        ("created", snapshot.created_at.clone()),
    ];
    if !snapshot.clones.is_empty() {
        properties.push(("clones", snapshot.clones.join(", ")));
    }
    if !snapshot.labels.is_empty() {
        properties.push(("labels", describe_labels(&snapshot.labels)));
    }
    context.out.object(&snapshot, &properties)
}

fn delete(context: &mut Context, args: &SnapshotDeleteArgs) -> Result<()> {
    let names: Vec<SnapshotName> =
        args.snapshots.iter().map(|text| SnapshotName::parse(text)).collect::<Result<_>>()?;
    let agent = context.agent()?;
    let names = resolve(&agent, names)?;
    if names.len() > DELETE_BATCH {
        interrupt::install()?;
    }
    let mut progress = Progress::new(
        "delete",
        Unit::Items,
        Some(names.len() as u64),
        context.out.quiet || names.len() <= DELETE_BATCH,
    );
    for (batch, first) in names.chunks(DELETE_BATCH).zip((0_u64..).step_by(DELETE_BATCH)) {
        interrupt::check().map_err(|failure| failure.at(format!("{first} of {} deleted", names.len())))?;
        let request =
            v1::DeleteSnapshotsRequest { snapshots: batch.iter().map(backend::reference).collect() };
        agent.call(|mut client| async move { client.delete_snapshots(request).await })?;
        progress.set(first + batch.len() as u64);
    }
    drop(progress);
    let what = match names.as_slice() {
        [one] => format!("deleted snapshot {one}"),
        all => format!("deleted {} snapshots", all.len()),
    };
    context.out.note(&what);
    Ok(())
}

/// Looks every snapshot up before the first is deleted, and fixes what `latest` means.
fn resolve(agent: &AgentBackend, names: Vec<SnapshotName>) -> Result<Vec<SnapshotName>> {
    let mut seen = HashSet::new();
    let mut resolved = Vec::with_capacity(names.len());
    // The agent looks up a single batch itself.
    let trust_agent = names.len() <= DELETE_BATCH && names.iter().all(|name| name.name != LATEST);
    for name in names {
        let name = if trust_agent {
            name
        } else {
            let snapshot = agent.snapshot(&name)?;
            SnapshotName { volume: snapshot.volume, name: snapshot.name }
        };
        if !seen.insert(name.clone()) {
            return Err(Failure::usage(format!("snapshot {name} is given twice")));
        }
        resolved.push(name);
    }
    Ok(resolved)
}
