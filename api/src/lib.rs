//! Wire types and client of the agent's API.
//!
//! [`v1`] is generated from `proto/agent.proto`, where every message and field is described;
//! [`Error`] is what travels when a call fails; [`Client`] connects over the agent's Unix socket.

pub mod client;
pub mod error;

/// The wire types of `cowslip.agent.v1`.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod v1 {
    tonic::include_proto!("cowslip.agent.v1");
}

pub use client::Client;
pub use error::{Error, ErrorKind, Result};

/// Default path of the agent's socket.
pub const DEFAULT_SOCKET: &str = "/run/cowslip/agent.sock";

/// Most bytes of raw data in one message: chunks of imports and exports, reads of snapshots.
pub const MAX_DATA_BYTES: usize = 1 << 20;
