//! The Container Storage Interface 1.12 in front of the agent of this node.
//!
//! Holds no state: what it answers is asked of the agent, over the agent's API, at each call. It never
//! sees a block address or a pool. A failed call carries a code and a message; gRPC details stay empty.
//!
//! [`cluster`] is a part of its own: it runs once in a cluster, and talks to the API of Kubernetes only.

pub mod agent;
mod browse;
pub mod checks;
pub mod cluster;
pub mod controller;
pub mod endpoint;
pub mod group;
pub mod identity;
pub mod ids;
pub mod labels;
pub mod metadata;
pub mod node;
pub mod parameters;
pub mod pending;
pub mod serve;
mod sys;

/// The wire types of `csi.v1`, generated from `proto/csi.proto`, where the specification describes them.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Name of the driver, as StorageClasses and VolumeSnapshotClasses give it.
pub const DRIVER_NAME: &str = "csi.cowslip.io";

/// Key of the topology segment whose value is the name of a node.
pub const TOPOLOGY_KEY: &str = "topology.csi.cowslip.io/node";

/// File systems of volumes, each with the least size in bytes that its maker takes. The first is the default.
pub const FILE_SYSTEMS: [(&str, u64); 3] = [("ext4", 4 << 20), ("xfs", 300 << 20), ("btrfs", 128 << 20)];

/// The answer to a call, as tonic wants it.
type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// The answer to the call `method`, told in the log where it failed. Requests are never logged: they carry secrets.
fn answer<T>(method: &'static str, result: Result<T, tonic::Status>) -> Answer<T> {
    match result {
        Ok(answer) => Ok(tonic::Response::new(answer)),
        Err(status) => {
            tracing::warn!(method, code = ?status.code(), "{}", status.message());
            Err(status)
        }
    }
}
