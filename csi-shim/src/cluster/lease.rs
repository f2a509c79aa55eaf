//! Which replica leads: the one whose name is on a Lease of the cluster, and which renews it.
//!
//! Invariant: a leader stops before another one may begin. It gives up [`RENEW_WITHIN`] after its last renewal began; another
//! one takes the lease when it has seen it unchanged for [`LASTS`]. Only own, monotonic clocks are compared: a time written
//! by another machine says nothing.

use super::error::unless_absent;
use super::figures::Figures;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// The name of the lease.
pub const NAME: &str = "cowslip-csi-cluster";
/// How long the lease is another's after its last renewal was seen.
const LASTS: Duration = Duration::from_secs(15);
/// A leader whose last renewal is older leads no more.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at the lease.
const PERIOD: Duration = Duration::from_secs(2);
/// Longest time for one look.
const PATIENCE: Duration = Duration::from_secs(5);

/// One replica's part in the election.
pub struct Election {
    leases: Api<Lease>,
    identity: String,
    seen: Seen,
    /// When the last renewal that succeeded began.
    renewed: Instant,
    figures: Arc<Figures>,
}

/// The lease as it was when it last changed, and for how long it has been so.
struct Seen {
    version: Option<String>,
    since: Instant,
}

impl Seen {
    /// Whether it has been as it is for longer than it lasts.
    fn is_stale(&mut self, version: Option<String>, lasts: Duration, now: Instant) -> bool {
        if self.version != version {
            *self = Self { version, since: now };
        }
        now - self.since >= lasts
    }
}

impl Election {
    /// Of the replica with that name.
    pub fn new(client: Client, namespace: &str, identity: &str, figures: Arc<Figures>) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            seen: Seen { version: None, since: Instant::now() },
            renewed: Instant::now(),
            figures,
        }
    }

    /// Until this replica leads.
    pub async fn win(&mut self) {
        loop {
            match self.look().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(why) => tracing::warn!("the lease {NAME} is out of reach: {why}"),
            }
            sleep(PERIOD).await;
        }
    }

    /// Renews; until this replica leads no more.
    pub async fn hold(&mut self) {
        loop {
            let until = self.renewed + RENEW_WITHIN;
            let renewal = async {
                sleep(PERIOD).await;
                self.look().await
            };
            match timeout_at(until, renewal).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(why)) => tracing::warn!("the lease {NAME} was not renewed: {why}"),
            }
        }
    }

    /// Gives the lease up, so that another replica need not wait.
    pub async fn resign(&mut self) {
        let resigned = timeout(PATIENCE, async {
            let mut lease = self.leases.get(NAME).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() == Some(&self.identity) {
                spec.holder_identity = None;
                self.leases.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        });
        match resigned.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the lease {NAME} was not given up: {error}"),
            Err(_) => tracing::warn!("the lease {NAME} was not given up in time"),
        }
    }

    /// Takes or renews the lease if it can be had; whether this replica has it now.
    async fn look(&mut self) -> Result<bool, String> {
        let began = Instant::now();
        let has = match timeout(PATIENCE, self.take()).await {
            Ok(answer) => answer.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no answer in {} s", PATIENCE.as_secs())),
        };
        if has {
            self.renewed = began;
        }
        self.figures.lease(has);
        Ok(has)
    }

    async fn take(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.leases.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.claimed(None)) };
            return won(self.leases.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let lasts = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        let stale = self.seen.is_stale(
            lease.resource_version(),
            lasts.map_or(LASTS, Duration::from_secs),
            Instant::now(),
        );
        if holder != self.identity && !holder.is_empty() && !stale {
            return Ok(false);
        }
        lease.spec = Some(self.claimed(Some(&spec)));
        // With the version that was read: if another replica was faster, this one has not won.
        won(self.leases.replace(NAME, &PostParams::default(), &lease).await)
    }

    /// The lease as this replica writes it.
    fn claimed(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let mine = before.filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        let changes = before
            .map_or(0, |spec| spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(mine.is_none())));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LASTS.as_secs()).ok(),
            acquire_time: mine.and_then(|spec| spec.acquire_time.clone()).or_else(|| now.clone()),
            renew_time: now,
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }
}

/// Another replica may have been faster.
fn won(answer: kube::Result<Lease>) -> kube::Result<bool> {
    match unless_absent(answer) {
        Ok(lease) => Ok(lease.is_some()),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_changes_is_never_stale() {
        const SECOND: Duration = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut seen = Seen { version: None, since: now };
        for version in 1..9 {
            assert!(!seen.is_stale(Some(version.to_string()), LASTS, now));
            now += LASTS - SECOND;
        }
        assert!(!seen.is_stale(Some("8".into()), LASTS, now));
        assert!(seen.is_stale(Some("8".into()), LASTS, now + SECOND));
    }
}
