//! Browsing from a pod: an inline ephemeral volume that shows the snapshots of a claim as files, read only.
//!
//! Invariant: which volumes can be named is decided by the pod's own namespace, which kubelet tells and the pod cannot
//! change, and by what the provisioner wrote down when the claim's volume was made.

mod again;

pub use again::keep;

use crate::agent::Agent;
use crate::checks::shown;
use crate::labels;
use crate::node::{bind, mount_at};
use rustix::mount::MountFlags;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tonic::Status;

/// What kubelet says of an inline volume.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// The pod's namespace, with `podInfoOnMount`.
const POD_NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
/// The attribute that names the claim.
const SNAPSHOTS_OF: &str = "snapshotsOf";

/// Whether the volume is an inline one.
pub fn is_wanted(context: &HashMap<String, String>) -> bool {
    context.get(EPHEMERAL).is_some_and(|ephemeral| ephemeral == "true")
}

/// The claim and its namespace.
fn claim(context: &HashMap<String, String>) -> Result<(&str, &str), Status> {
    let stranger = |key: &&String| key.as_str() != SNAPSHOTS_OF && !key.starts_with(labels::KUBERNETES);
    if let Some(key) = context.keys().find(stranger) {
        return Err(Status::invalid_argument(format!(
            "volumeAttributes {} is not known; there is {SNAPSHOTS_OF}",
            shown(key)
        )));
    }
    let value = |key: &str| context.get(key).map_or("", String::as_str);
    let (name, namespace) = (value(SNAPSHOTS_OF), value(POD_NAMESPACE));
    if name.is_empty() {
        return Err(Status::invalid_argument(format!("volumeAttributes {SNAPSHOTS_OF} is missing")));
    }
    if namespace.is_empty() {
        return Err(Status::failed_precondition(
            "the pod's namespace is not told: the CSIDriver object needs podInfoOnMount",
        ));
    }
    Ok((name, namespace))
}

/// Shows the snapshots at the target path.
pub async fn publish(
    agent: &Agent,
    context: &HashMap<String, String>,
    target: PathBuf,
) -> Result<(), Status> {
    let (name, namespace) = claim(context)?;
    let mut agent = agent.connect().await?;
    let wanted = [(labels::PVC_NAME, name), (labels::PVC_NAMESPACE, namespace)];
    let wanted = wanted.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    // The newest, where a claim of that name was made again and the volume of the old one was retained.
    let volume = agent.volumes_with(wanted).await?.pop().ok_or_else(|| {
        Status::not_found(format!(
            "claim {} of namespace {} has no volume on this node",
            shown(name),
            shown(namespace)
        ))
    })?;
    let tree = agent.status().await?.agent.and_then(|agent| agent.snapshots_dir).ok_or_else(|| {
        Status::failed_precondition("the agent shows no snapshots: `cowslip status` on the node says why")
    })?;
    let from = Path::new(&tree).join(&volume.name);
    tokio::task::spawn_blocking(move || show(&from, &target))
        .await
        .map_err(|failure| Status::internal(failure.to_string()))?
}

fn show(from: &Path, target: &Path) -> Result<(), Status> {
    let failed = |what: &str, path: &Path, error: std::io::Error| {
        Status::internal(format!("cannot {what}, {}: {error}", shown(&path.to_string_lossy())))
    };
    if mount_at(target).map_err(|e| failed("read the mount table", target, e))?.is_none() {
        std::fs::create_dir_all(target).map_err(|e| failed("make the target", target, e))?;
    } else if shown_at(target) {
        return Ok(());
    }
    bind(from, target, FLAGS).map_err(|e| failed("show the snapshots", from, e))
}

/// How a publication is mounted.
const FLAGS: MountFlags =
    MountFlags::RDONLY.union(MountFlags::NOSUID).union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Whether what is mounted there answers. What does not, because its agent is gone, stays below what shows the snapshots
/// again: what is mounted over it reaches a container that has it, and what is mounted instead of it would not.
fn shown_at(target: &Path) -> bool {
    std::fs::read_dir(target).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn context(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn only_inline_volumes_are_meant() {
        assert!(is_wanted(&context(&[(EPHEMERAL, "true")])));
        assert!(!is_wanted(&context(&[(EPHEMERAL, "false"), (SNAPSHOTS_OF, "data")])));
        assert!(!is_wanted(&context(&[])));
    }

    #[test]
    fn the_namespace_is_the_pods() {
        let good = context(&[(EPHEMERAL, "true"), (SNAPSHOTS_OF, "data"), (POD_NAMESPACE, "shop")]);
        assert_eq!(claim(&good).unwrap(), ("data", "shop"));
        let refused = |pairs: &[(&str, &str)]| claim(&context(pairs)).unwrap_err().code();
        assert_eq!(refused(&[(POD_NAMESPACE, "shop")]), Code::InvalidArgument);
        assert_eq!(refused(&[(SNAPSHOTS_OF, "data")]), Code::FailedPrecondition);
        let more = [(SNAPSHOTS_OF, "data"), (POD_NAMESPACE, "shop"), ("namespace", "other")];
        assert_eq!(refused(&more), Code::InvalidArgument);
    }
}
