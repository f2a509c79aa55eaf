//! `cowslip-csi`: the CSI driver `csi.cowslip.io`.

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use csi_shim::agent::Agent;
use csi_shim::cluster::{self, Legacy, Options};
use csi_shim::endpoint::{BindError, Endpoint};
use csi_shim::serve::{self, ServeError};
use std::future::Future;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The CSI driver csi.cowslip.io: volumes and snapshots of the Cowslip agent for Kubernetes.
#[derive(Parser)]
#[command(name = "cowslip-csi", version)]
struct Cli {
    /// How to write the log to stderr; RUST_LOG says how much of it.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Serve CSI for the agent of this node.
    #[command(
        after_help = "Example:\n  cowslip-csi node --endpoint unix:///csi/csi.sock --agent /run/cowslip/agent.sock"
    )]
    Node {
        /// The Unix socket to listen on, unix:///PATH; its directory must exist.
        #[arg(long, value_name = "ENDPOINT", env = "CSI_ENDPOINT")]
        endpoint: Endpoint,
        /// The agent's socket. The agent may come later and may go: the driver is not ready meanwhile.
        #[arg(long, value_name = "SOCKET", env = "COWSLIP_SOCKET", default_value = api::DEFAULT_SOCKET)]
        agent: PathBuf,
        /// The name of the node in the cluster; without it the host's name.
        #[arg(long, value_name = "NAME", env = "NODE_NAME")]
        node_name: Option<String>,
    },
    /// Do what the cluster needs once: one replica leads, the others wait for it to end.
    #[command(
        after_help = "Example:\n  cowslip-csi cluster --kubeconfig ~/.kube/config --namespace cowslip --legacy"
    )]
    Cluster(ClusterArguments),
}

#[derive(Args)]
struct ClusterArguments {
    /// How to reach the cluster; without it, as kubectl would, or as a pod of the cluster.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the lease.
    #[arg(long, value_name = "NAMESPACE", env = "NAMESPACE", default_value = "cowslip")]
    namespace: String,
    /// The name of this replica in the election; without it the host's name.
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: Option<String>,
    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9810")]
    listen: SocketAddr,
    /// Seconds for which a node must have been out of the cluster until what is deleted of it is let go.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    gone_after: u64,
    /// Serve VolumeSnapshots of volumesnapshot.external-storage.k8s.io/v1 too.
    #[arg(long)]
    legacy: bool,
    /// The VolumeSnapshotClass that those are made with.
    #[arg(long, value_name = "CLASS", default_value = "cowslip", requires = "legacy")]
    legacy_snapshot_class: String,
    /// The StorageClass of volumes that are made of those; it waits for its first consumer.
    #[arg(long, value_name = "CLASS", default_value = "cowslip", requires = "legacy")]
    legacy_storage_class: String,
}

/// Mounts and the like that are under way at the same time; a device whose agent is away holds its thread.
const BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_format);
    let Err(error) = run(cli.command) else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    match error.downcast_ref::<ServeError>() {
        Some(ServeError::Bind(error)) => {
            eprintln!("hint: {}", error.hint());
            // The exit codes of `cowslip`: 4 is busy or in conflict.
            ExitCode::from(if matches!(error, BindError::Io { .. }) { 1 } else { 4 })
        }
        _ => ExitCode::FAILURE,
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Node { endpoint, agent, node_name } => run_node(&endpoint, agent, node_name),
        Command::Cluster(arguments) => run_cluster(arguments),
    }
}

fn run_node(endpoint: &Endpoint, agent: PathBuf, node_name: Option<String>) -> anyhow::Result<()> {
    let node_name = node_name.map_or_else(|| host_name("--node-name"), Ok)?;
    // It hands requests on; what blocks has threads of its own. A second thread would be woken for each of them, which
    // costs more than what it has to do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = asked_to_end()?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), node = node_name, "starting");
        Ok(serve::serve(endpoint, Agent::new(agent, &node_name), stop).await?)
    })
}

fn run_cluster(arguments: ClusterArguments) -> anyhow::Result<()> {
    let identity = arguments.identity.map_or_else(|| host_name("--identity"), Ok)?;
    let legacy = Legacy {
        snapshot_class: arguments.legacy_snapshot_class,
        storage_class: arguments.legacy_storage_class,
    };
    let options = Options {
        kubeconfig: arguments.kubeconfig,
        namespace: arguments.namespace,
        identity,
        listen: arguments.listen,
        gone_after: Duration::from_secs(arguments.gone_after),
        legacy: arguments.legacy.then_some(legacy),
    };
    // It waits for the API nearly all the time.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = asked_to_end()?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), identity = options.identity, "starting");
        Ok(cluster::run(options, stop).await?)
    })
}

fn host_name(instead: &str) -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .with_context(|| format!("cannot tell the host's name; give {instead}"))?;
    Ok(name.trim().to_owned())
}

/// Done when the process is asked to end.
fn asked_to_end() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
