//! What systemd is told: ready, alive, stopping. Without systemd nothing is sent.
//!
//! WATCHDOG=1 is sent only after a request over the agent's own socket has been answered from the pool.

use super::agent::Agent;
use api::v1::GetStatusRequest;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;

/// A request that takes longer shows that nothing is served.
const ANSWER: Duration = Duration::from_secs(10);

/// Serving.
pub fn ready(agent: &Agent) {
    send(&[NotifyState::Ready, NotifyState::Status(&summary(agent))]);
}

/// About to stop.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// One line for `systemctl status`.
pub fn progress(text: &str) {
    send(&[NotifyState::Status(text)]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("systemd cannot be told: {error}");
    }
}

fn summary(agent: &Agent) -> String {
    let info = agent.pool.info();
    let attached = agent.devices.ids().len();
    format!("pool {}, {} MiB free, {attached} volumes attached", info.state.as_str(), info.free_bytes >> 20)
}

/// Keeps systemd's watchdog quiet as long as requests are answered. Ends with the runtime.
pub async fn watchdog(agent: Arc<Agent>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(limit / 3);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match tokio::time::timeout(ANSWER.min(limit / 3), answer(&agent)).await {
            Ok(Ok(())) => {
                let state = Arc::clone(&agent);
                let text = tokio::task::spawn_blocking(move || summary(&state)).await.unwrap_or_default();
                send(&[NotifyState::Watchdog, NotifyState::Status(&text)]);
            }
            Ok(Err(error)) => tracing::error!("the agent does not answer itself: {error}"),
            Err(_) => tracing::error!("the agent does not answer itself within {:?}", ANSWER.min(limit / 3)),
        }
    }
}

async fn answer(agent: &Agent) -> api::Result<()> {
    let mut client = api::Client::connect(&agent.config.socket).await?;
    client.get_status(GetStatusRequest {}).await?;
    Ok(())
}
