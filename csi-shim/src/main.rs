//! `cowslip-csi`: the CSI driver `csi.cowslip.io`.

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use csi_shim::agent::Agent;
use csi_shim::endpoint::{BindError, Endpoint};
use csi_shim::serve::{self, ServeError};
use std::io::IsTerminal;
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
        /// The name of the node in the cluster; without it the host's name.
        #[arg(long, value_name = "NAME", env = "NODE_NAME")]
        node_name: Option<String>,
    },
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
    let Command::Node { endpoint, agent, node_name } = command;
    let node_name = match node_name {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot tell the host's name; give --node-name")?
            .trim()
            .to_owned(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
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
        Ok(serve::serve(&endpoint, Agent::new(agent, &node_name), stop).await?)
    })
}
