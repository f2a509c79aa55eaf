//! Labels by which the driver's records lie with the objects themselves, written in the same change of the pool.

/// Hash of the orchestrator's name: no two volumes, and no two snapshots but those of a group, have the same.
pub const NAME: &str = "csi.cowslip.io/name";
/// Hash of the other arguments that it was made with.
pub const ARGUMENTS: &str = "csi.cowslip.io/arguments";
/// Of a volume: the size it was made for, bytes.
pub const SIZE: &str = "csi.cowslip.io/size";
/// Of a volume: `snapshot` or `volume`, a space and the id of what it was made of.
pub const SOURCE: &str = "csi.cowslip.io/source";
/// Of a volume: the file system that the class asks for.
pub const FS: &str = "csi.cowslip.io/fs";
/// Of a snapshot: the id of its group.
pub const GROUP: &str = "csi.cowslip.io/group";
/// Of a volume: what the claim is called, where the provisioner tells it (`--extra-create-metadata`).
pub const PVC_NAME: &str = "csi.storage.k8s.io/pvc/name";
/// Of a volume: the claim's namespace.
pub const PVC_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// Of a VolumeSnapshotContent and its kin: the node whose sidecar sees to it.
pub const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";
/// Of a claim: the node that its volume is made on, as the scheduler says, or whoever knows better.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// What Kubernetes' sidecars add to the parameters of a class begins with this.
pub const KUBERNETES: &str = "csi.storage.k8s.io/";

/// Labels of the agent on snapshots that live only as long as what they are for.
pub const INTERNAL: [&str; 2] = ["cowslip.io/temporary", "cowslip.io/mkfs"];
