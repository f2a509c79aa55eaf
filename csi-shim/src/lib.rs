//! The Container Storage Interface 1.12 in front of the agent of this node.
//!
//! Holds no state: what it answers is asked of the agent, over the agent's API, at each call. It never
//! sees a block address or a pool. A failed call carries a code and a message; gRPC details stay empty.

pub mod endpoint;
pub mod identity;
pub mod node;

/// The wire types of `csi.v1`, generated from `proto/csi.proto`, where the specification describes them.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Name of the driver, as StorageClasses and VolumeSnapshotClasses give it.
pub const DRIVER_NAME: &str = "csi.cowslip.io";
