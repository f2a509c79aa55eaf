//! `cowslip volume …`, `clone` and `rollback`.

use super::{
    Context,
    args::{CloneArgs, RollbackArgs, VolumeCommand, VolumeCreateArgs, VolumeRenameArgs, VolumeResizeArgs},
    backend, export,
    failure::{Failure, Kind, Result},
    import,
    model::Volume,
    names::{self, SnapshotName},
    output::{left, right},
    sizes::{self, human},
    times::minute,
};
use api::v1;
use std::collections::HashMap;

/// Runs one of the volume commands.
pub fn run(context: &mut Context, command: &VolumeCommand) -> Result<()> {
    match command {
        VolumeCommand::Create(args) => create(context, args),
        VolumeCommand::List => list(context),
        VolumeCommand::Show(args) => show(context, &args.name),
        VolumeCommand::Rename(args) => rename(context, args),
        VolumeCommand::Resize(args) => resize(context, args),
        VolumeCommand::Delete(args) => delete(context, &args.name),
        VolumeCommand::Attach(args) => attach(context, &args.name),
        VolumeCommand::Detach(args) => detach(context, &args.name),
        VolumeCommand::Import(args) => import::run(context, args),
        VolumeCommand::Export(args) => export::run(context, args),
    }
}

/// Labels of the command line; a key given twice is refused.
pub fn labels(texts: &[String]) -> Result<HashMap<String, String>> {
    let mut labels = HashMap::new();
    for text in texts {
        let (key, value) = names::label(text)?;
        if labels.insert(key.clone(), value).is_some() {
            return Err(Failure::usage(format!("label '{key}' is given twice")));
        }
    }
    Ok(labels)
}

fn create(context: &mut Context, args: &VolumeCreateArgs) -> Result<()> {
    let request = v1::CreateVolumeRequest {
        name: names::volume(&args.name)?,
        size_bytes: args.size.as_deref().map(sizes::parse_volume).transpose()?.unwrap_or(0),
        fs: args.fs.map(|fs| fs.as_str().to_owned()).unwrap_or_default(),
        from: args.from.as_deref().map(SnapshotName::parse).transpose()?.as_ref().map(backend::reference),
        labels: labels(&args.labels)?,
    };
    let volume = context.agent()?.call(|mut client| async move { client.create_volume(request).await })?;
    done(context, volume.into(), "created")
}

fn list(context: &mut Context) -> Result<()> {
    let volumes = context.reader()?.volumes()?;
    let columns = [
        left("NAME"),
        right("SIZE"),
        right("USED"),
        right("EXCLUSIVE"),
        right("SNAPSHOTS"),
        left("CREATED"),
        left("DEVICE"),
        left("ORIGIN"),
    ];
    let dash = || "-".to_owned();
    context.out.list(&volumes, &columns, |volume| {
        vec![
            volume.name.clone(),
            human(volume.size_bytes),
            human(volume.used_bytes),
            human(volume.exclusive_bytes),
            volume.snapshots.len().to_string(),
            minute(&volume.created_at),
            volume.device.clone().unwrap_or_else(dash),
            volume.origin.clone().unwrap_or_else(dash),
        ]
    })
}

/// `20G (21474836480 bytes)`.
pub fn exact_size(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes} bytes") } else { format!("{} ({bytes} bytes)", human(bytes)) }
}

/// `k=v, k2=v2`.
pub fn describe_labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

fn show(context: &mut Context, name: &str) -> Result<()> {
    let name = names::volume(name)?;
    let volume = context.reader()?.volume(&name)?;
    let mut properties = vec![
        ("name", volume.name.clone()),
        ("id", volume.id.to_string()),
        ("size", exact_size(volume.size_bytes)),
        ("used", exact_size(volume.used_bytes)),
        ("exclusive", exact_size(volume.exclusive_bytes)),
        ("created", volume.created_at.clone()),
        ("attached", if volume.attached { "yes" } else { "no" }.to_owned()),
    ];
    let optional = [
        ("device", volume.device.clone()),
        ("transport", volume.transport.clone()),
        ("attach error", volume.attach_error.clone()),
        ("origin", volume.origin.clone()),
    ];
    properties.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    if !volume.snapshots.is_empty() {
        properties.push(("snapshots", volume.snapshots.join(", ")));
    }
    if !volume.labels.is_empty() {
        properties.push(("labels", describe_labels(&volume.labels)));
    }
    context.out.object(&volume, &properties)
}

fn rename(context: &mut Context, args: &VolumeRenameArgs) -> Result<()> {
    let request =
        v1::RenameVolumeRequest { name: names::volume(&args.old)?, new_name: names::volume(&args.new)? };
    let volume = context.agent()?.call(|mut client| async move { client.rename_volume(request).await })?;
    done(context, volume.into(), "renamed to")
}

fn resize(context: &mut Context, args: &VolumeResizeArgs) -> Result<()> {
    let request = v1::ResizeVolumeRequest {
        name: names::volume(&args.name)?,
        size_bytes: sizes::parse_volume(&args.size)?,
    };
    let volume = context.agent()?.call(|mut client| async move { client.resize_volume(request).await })?;
    done(context, volume.into(), "resized")
}

fn delete(context: &mut Context, name: &str) -> Result<()> {
    let name = names::volume(name)?;
    let request = v1::DeleteVolumeRequest { name: name.clone() };
    context.agent()?.call(|mut client| async move { client.delete_volume(request).await }).map_err(
        |failure| {
            let hint = format!("detach it first: cowslip volume detach {name}");
            if failure.kind() == Kind::Busy { failure.or_hint(hint) } else { failure }
        },
    )?;
    context.out.note(&format!("deleted volume {name}"));
    Ok(())
}

fn attach(context: &mut Context, name: &str) -> Result<()> {
    let request = v1::AttachVolumeRequest { name: names::volume(name)? };
    let volume = context.agent()?.call(|mut client| async move { client.attach_volume(request).await })?;
    let volume = Volume::from(volume);
    if context.out.json {
        return context.out.json_line(&volume);
    }
    match &volume.device {
        Some(device) => context.out.line(device),
        None => Err(Failure::failed(format!(
            "volume {name} has no device: {}",
            volume.attach_error.as_deref().unwrap_or("no reason given")
        ))
        .hint("see `cowslip doctor`")),
    }
}

fn detach(context: &mut Context, name: &str) -> Result<()> {
    let request = v1::DetachVolumeRequest { name: names::volume(name)? };
    let volume = context.agent()?.call(|mut client| async move { client.detach_volume(request).await })?;
    done(context, volume.into(), "detached")
}

/// `cowslip clone`.
pub fn clone(context: &mut Context, args: &CloneArgs) -> Result<()> {
    let request = v1::CloneRequest {
        snapshot: Some(backend::reference(&SnapshotName::parse(&args.snapshot)?)),
        new_name: names::volume(&args.new)?,
        size_bytes: 0,
        labels: HashMap::new(),
    };
    let volume = {
        use v1::agent_client::AgentClient;
        // By its path: `client.clone()` is the method of the trait.
        let call = |mut client: api::Client| async move { AgentClient::clone(&mut client, request).await };
        context.agent()?.call(call)?
    };
    done(context, volume.into(), "created")
}

/// `cowslip rollback`.
pub fn rollback(context: &mut Context, args: &RollbackArgs) -> Result<()> {
    let snapshot = SnapshotName::parse(&args.snapshot)?;
    let request = v1::RollbackRequest { snapshot: Some(backend::reference(&snapshot)) };
    let volume = context.agent()?.call(|mut client| async move { client.rollback(request).await })?;
    done(context, volume.into(), "rolled back")
}

/// A changed volume: an object in JSON, else a note on stderr.
#[allow(clippy::needless_pass_by_value)] // callers hand over what they just received
fn done(context: &mut Context, volume: Volume, what: &str) -> Result<()> {
    if context.out.json {
        return context.out.json_line(&volume);
    }
    context.out.note(&format!("{what} volume {}, {}", volume.name, human(volume.size_bytes)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_given_once() {
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        assert_eq!(labels(&texts(&["a=1", "b=2"])).unwrap().len(), 2);
        assert_eq!(labels(&texts(&["a=1", "a=2"])).unwrap_err().exit_code(), 2);
        assert_eq!(exact_size(20 << 30), "20G (21474836480 bytes)");
        assert_eq!(exact_size(0), "0 bytes");
    }
}
