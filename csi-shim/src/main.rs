//! `cowslip-csi`: the CSI driver `csi.cowslip.io`.

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use csi_shim::endpoint::{BindError, Endpoint};
use csi_shim::node::{self, ServeError};
use std::path::PathBuf;
use std::process::ExitCode;
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
        /// The name of the node in the cluster.
        #[arg(long, value_name = "NAME", env = "NODE_NAME")]
        node_name: Option<String>,
    },
}

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
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let Command::Node { endpoint, agent, node_name } = command;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tracing::info!(version = env!("CARGO_PKG_VERSION"), node = node_name, "starting");
        Ok(node::serve(&endpoint, agent, stop).await?)
    })
}
