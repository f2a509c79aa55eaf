//! The agent: one process that owns a pool and answers on a socket.
//!
//! Order at start, each step before what depends on it: configuration; the process's role; the pool's
//! lock; live devices, whose users wait; the socket; the tree of snapshots; marked volumes; READY.
//! Order at the end: the server; devices that nobody uses; the tree; the pool. Devices in use stay
//! alive with the holder, for the next agent.

mod agent;
mod convert;
mod devices;
mod doctor;
mod errors;
mod events;
mod format;
mod freeze;
mod locks;
mod mkfs;
mod mounts;
mod notify;
mod peer;
mod process;
mod provider;
mod provision;
mod reconcile;
mod ring;
mod scrub;
mod server;
mod shutdown;
mod snapshots;
mod socket;
mod status;
mod sys;
mod transfer;
mod transport;
mod volumes;

pub use crate::config::AgentOptions;

use crate::config::Config;
use crate::logging;
use agent::{Agent, Parts};
use api::v1::agent_server::AgentServer;
use devices::Devices;
use errors::of_store;
use events::{Events, Subject};
use peer::{Connection, Rule};
use process::{Keeper, Role};
use provider::SnapshotsMount;
use socket::Socket;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{OpenOptions, Pool, PoolState};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use transport::Taken;
use ublk_target::{FdStore, holder, serving};

/// How often the pool's room is looked at.
const POOL_WATCH: Duration = Duration::from_secs(5);
/// After how many of these looks the tree of snapshots lets go of what nobody used since the last time.
const LOOKS_TO_IDLE: u64 = 12;
/// How long the recovery of devices may take before its process is taken for hung. Each step of it has a shorter limit.
const RECOVERY: Duration = Duration::from_secs(120);
/// How long a locked pool is waited for while somebody's device waits for its server.
const LANDING: Duration = Duration::from_secs(30);
/// Threads of the server. Work that blocks has threads of its own.
const SERVER_THREADS: usize = 2;
/// Operations that run at the same time; others wait.
const WORK_THREADS: usize = 64;

/// Serves until SIGTERM or SIGINT. To be called on the main thread, before any other thread is started:
/// the process may become the parent of the one that serves.
///
/// # Errors
/// What kept the agent from starting: an [`api::Error`] in the chain says of which kind.
pub fn run(options: &AgentOptions) -> anyhow::Result<ExitCode> {
    let config = Config::load(options)?;
    logging::init(&config.log);
    // Also started by hand, and also the parent, which holds what devices live by.
    if let Err(error) = serving::never_dump() {
        tracing::warn!(%error, "a crash may write a core dump, and devices wait for that");
    }
    let outlives = serving::outlive_others();
    let keeper = match process::role(&config)? {
        Role::Done(code) => return Ok(code),
        Role::Serve(keeper) => keeper,
    };
    store::io::heap::keep_reserve();
    let _last_words = logging::wait_for_nobody()?;
    if let Err(error) = outlives {
        tracing::warn!(%error, "when memory runs out, the agent may be killed before others (CAP_SYS_RESOURCE)");
    }
    if let Err(error) = serving::stay_in_memory() {
        tracing::warn!(%error, "the program may be paged out (RLIMIT_MEMLOCK, CAP_IPC_LOCK)");
    }
    if let Some(how) = holder::last_end() {
        tracing::error!("the agent before this one ended: {how}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(SERVER_THREADS)
        .max_blocking_threads(WORK_THREADS)
        .thread_name("cowslip-api")
        .enable_all()
        .build()?;
    let (agent, socket) = start(config, keeper)?;
    let ended = runtime.block_on(serve(&agent, socket));
    // Operations get a moment to end; what is stuck in the kernel does not keep the agent from stopping.
    runtime.shutdown_timeout(shutdown::GRACE);
    let closed = agent.shut_down();
    ended?;
    closed?;
    Ok(ExitCode::SUCCESS)
}

/// Everything up to the socket. Blocks: an earlier agent's writes may have to land first.
fn start(config: Config, keeper: Keeper) -> api::Result<(Arc<Agent>, Socket)> {
    let gid = config.socket_group.as_deref().map(peer::group_id).transpose()?;
    socket::make_dir(&config.run_dir, 0o755)?;
    let ring = ring::choose(&config)?;
    let start = Instant::now();
    notify::progress("opening the pool");
    let pool = open_pool(&config, &ring, keeper.recovering).inspect_err(|_| ring.remove_unused())?;
    let opened = start.elapsed();
    // Only now: a process that gets this far is one that its holder starts again.
    let taken = keeper.store.map(Taken::from).transpose()?.map(Arc::new);
    let deadline = Deadline::set(taken.clone());
    notify::progress("recovering devices");
    let pool_id = pool.info().id;
    let chosen = transport::choose(&config, taken.as_ref(), &pool_id)?;
    let devices = Devices::new(chosen, &config.device_dir, pool_id);
    let agent = Agent::new(Parts {
        pool,
        devices,
        events: Arc::new(Events::new()),
        ring,
        supervisor: keeper.name,
        snapshots_mount: SnapshotsMount::default(),
        config,
    });
    agent.watch_damage();
    agent.recover_devices();
    drop(deadline);
    let (pool_ms, all_ms) = (opened.as_millis(), start.elapsed().as_millis());
    tracing::info!(
        devices = agent.devices.ids().len(),
        pool_ms,
        all_ms,
        "the pool is open, devices are served"
    );
    let socket = Socket::bind(&agent.config.socket, gid)?;
    agent.clean_up();
    agent.snapshots_mount.mount(&agent);
    Ok((agent, socket))
}

/// While devices are recovered: a process that hangs there shows nothing anywhere, so its parent kills it.
struct Deadline(Option<Arc<Taken>>);

impl Deadline {
    fn set(holder: Option<Arc<Taken>>) -> Self {
        let deadline = Self(holder);
        deadline.tell(Some(RECOVERY));
        deadline
    }

    fn tell(&self, limit: Option<Duration>) {
        if let Some(holder) = &self.0
            && let Err(error) = holder.set_deadline(limit)
        {
            tracing::warn!("the agent's parent does not know of its deadline: {error}");
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// Opens the pool. While it is locked and a device waits for a server, the lock may be that of an agent that has just
/// died and whose last I/O is landing: then it is waited for, for a while.
fn open_pool(config: &Config, ring: &ring::RingDir, wait_for_lock: bool) -> api::Result<Arc<Pool>> {
    let options = OpenOptions { ring_dir: ring.path.clone(), wait_for_lock, cache_bytes: config.cache_bytes };
    let start = Instant::now();
    let opened = loop {
        match Pool::open(&config.pool, &options) {
            Err(error)
                if error.kind() == store::ErrorKind::Busy
                    && start.elapsed() < LANDING
                    && ublk_target::ublk::any_unserved() =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            opened => break opened,
        }
    };
    opened.map_err(|error| {
        let kind = error.kind();
        let error = of_store(error);
        let place = config.pool.display();
        match kind {
            store::ErrorKind::NotFound if error.hint.is_none() => {
                error.hint(format!("cowslip pool init {place}"))
            }
            store::ErrorKind::Busy if error.hint.is_none() => error.hint(format!(
                "another agent has the pool {place}: stop it, or give another pool with --pool"
            )),
            _ => error,
        }
    })
}

async fn serve(agent: &Arc<Agent>, mut socket: Socket) -> anyhow::Result<()> {
    // From here on a signal ends the agent in order.
    let signal = shutdown::signal()?;
    let Some(listener) = socket.listener() else { return Ok(()) };
    listener.set_nonblocking(true)?;
    let gid = agent.config.socket_group.as_deref().map(peer::group_id).transpose()?;
    let rule = Rule { own_uid: std::fs::metadata("/proc/self")?.uid(), gid };
    let connections = UnixListenerStream::new(tokio::net::UnixListener::from_std(listener)?)
        .map(move |stream| stream.map(|stream| Connection::new(stream, rule)));
    let service = AgentServer::with_interceptor(server::Service(Arc::clone(agent)), peer::check);
    let closing = {
        let agent = Arc::clone(agent);
        async move {
            let name = signal.await;
            notify::stopping();
            agent.events.info("agent_stopping", Subject::default(), format!("the agent stops: {name}"));
            agent.close();
        }
    };
    let server = tonic::transport::Server::builder().add_service(service);
    let mut server = tokio::spawn(server.serve_with_incoming_shutdown(connections, closing));
    tokio::spawn(watch_pool(Arc::clone(agent)));
    let starting = tokio::spawn(start_up(Arc::clone(agent)));
    let mut closing = agent.closing();
    let ended = tokio::select! {
        ended = &mut server => ended,
        _ = closing.wait_for(|closing| *closing) => {
            // Requests that are under way are answered, for a while.
            tokio::time::timeout(shutdown::GRACE, server).await.unwrap_or(Ok(Ok(())))
        }
    };
    starting.abort();
    Ok(ended??)
}

/// What is done while requests are served already.
async fn start_up(agent: Arc<Agent>) {
    Arc::clone(&agent).attach_marked().await;
    let version = env!("CARGO_PKG_VERSION");
    let message = format!(
        "agent {version} serves {} on {}",
        agent.config.pool.display(),
        agent.config.socket.display()
    );
    agent.events.info("agent_started", Subject::default(), message);
    let ready = Arc::clone(&agent);
    // Nothing is lost if it fails: the watchdog tells the same.
    let _ = tokio::task::spawn_blocking(move || notify::ready(&ready)).await;
    notify::watchdog(agent).await;
}

async fn watch_pool(agent: Arc<Agent>) {
    let mut state = PoolState::Ok;
    let mut tick = tokio::time::interval(POOL_WATCH);
    for looks in 1u64.. {
        tick.tick().await;
        let agent = Arc::clone(&agent);
        let look = move || {
            if looks % LOOKS_TO_IDLE == 0 {
                agent.snapshots_mount.close_idle();
            }
            agent.watch_pool(state)
        };
        match tokio::task::spawn_blocking(look).await {
            Ok(now) => state = now,
            Err(_) => return, // the runtime ends
        }
    }
}
