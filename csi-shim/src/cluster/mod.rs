//! `cowslip-csi cluster`: what one process does for the whole cluster, beside the drivers of the nodes.
//!
//! One replica leads, the others wait (`lease`). The leader tells each node which snapshots are its own (`assign`),
//! chooses the node of claims that are made of something (`sources`), lets objects go whose node is gone (`gone`), and
//! serves the snapshots of an older API (`legacy`). It keeps nothing: all it knows is read from the cluster, and every step
//! can be repeated. So a new leader goes on where the last one died.

mod assign;
mod error;
mod feeds;
mod figures;
mod gone;
mod health;
mod lease;
mod legacy;
mod objects;
mod places;
mod queue;
mod sources;
mod tell;

use figures::Figures;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use lease::Election;
use places::Places;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tell::Teller;
use tokio::net::TcpListener;

/// What the cluster's part is told when it starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// How to reach the cluster; None: as a pod in it, or by the user's own configuration.
    pub kubeconfig: Option<PathBuf>,
    /// Where the lease is.
    pub namespace: String,
    /// The name of this replica, no other has it.
    pub identity: String,
    /// Where health and metrics are served.
    pub listen: SocketAddr,
    /// For how long a node must have been missing until its objects are let go.
    pub gone_after: Duration,
    /// Serve the older API too.
    pub legacy: Option<Legacy>,
}

/// The classes that objects of the older API are made with: it has none of its own.
#[derive(Debug, Clone)]
pub struct Legacy {
    /// The VolumeSnapshotClass of snapshots.
    pub snapshot_class: String,
    /// The StorageClass of volumes made of them.
    pub storage_class: String,
}

/// Why the cluster's part ended.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no way to the cluster.
    #[error("cannot tell how to reach the cluster: {0}")]
    Config(String),
    /// Health and metrics cannot be served.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another replica may lead by now.
    #[error(
        "the lease {namespace}/{} could not be renewed in time: another replica may lead now",
        lease::NAME
    )]
    Deposed {
        /// Where the lease is.
        namespace: String,
    },
}

/// What every loop of the leader has.
struct Cluster {
    client: Client,
    teller: Teller,
    places: Places,
    figures: Arc<Figures>,
    options: Options,
}

/// Takes part in the election, and leads when elected, until `stop` is done or the lease is lost.
///
/// # Errors
/// [`ClusterError`].
pub async fn run(options: Options, stop: impl Future<Output = ()>) -> Result<(), ClusterError> {
    let client = connect(&options).await?;
    let figures = Arc::new(Figures::default());
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(|source| ClusterError::Listen { address: options.listen, source })?;
    tracing::info!(address = %options.listen, "health and metrics");
    tokio::spawn(health::serve(listener, figures.clone()));
    let mut election = Election::new(client.clone(), &options.namespace, &options.identity, figures.clone());
    let namespace = options.namespace.clone();
    let ended = tokio::select! {
        () = stop => Ok(()),
        () = lead(&mut election, client, figures, options) => Err(ClusterError::Deposed { namespace }),
    };
    if ended.is_ok() {
        tracing::info!("ending");
        election.resign().await;
    }
    ended
}

/// Ends when the lease is lost.
async fn lead(election: &mut Election, client: Client, figures: Arc<Figures>, options: Options) {
    election.win().await;
    tracing::info!(identity = options.identity, "leading");
    let teller = Teller::new(client.clone(), &options.identity);
    let cluster = Cluster { client, teller, places: Places::default(), figures, options };
    let legacy = async {
        if cluster.options.legacy.is_some() {
            legacy::run(&cluster).await;
        }
    };
    // None of the loops computes for long: they are polled together, and end together when the lease is lost.
    tokio::select! {
        () = election.hold() => {}
        ((), ()) = async { tokio::join!(feeds::run(&cluster), legacy) } => {}
    }
}

async fn connect(options: &Options) -> Result<Client, ClusterError> {
    let unknown = |why: String| ClusterError::Config(why);
    let mut config = match &options.kubeconfig {
        None => kube::Config::infer().await.map_err(|error| unknown(error.to_string()))?,
        Some(path) => {
            let file = Kubeconfig::read_from(path).map_err(|error| unknown(error.to_string()))?;
            let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
            config.map_err(|error| unknown(error.to_string()))?
        }
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).map_err(|error| unknown(error.to_string()))
}
