//! What the agent tells of itself.

use super::agent::Agent;
use super::convert;
use super::events::Subject;
use super::scrub;
use api::v1;
use store::{Labels, PoolInfo, PoolState};

impl Agent {
    /// The answer to `status`.
    pub fn status(&self) -> v1::Status {
        let pool = self.pool.info();
        // By label: such a listing walks no map, and this is asked often.
        let volumes = self.pool.volumes_with(&Labels::new());
        let snapshots = self.pool.snapshots_with(&Labels::new()).len();
        let warnings = self.warnings(&pool);
        let (resequencing, resequenced_bytes) = self.pool.resequencing();
        v1::Status {
            agent: Some(self.agent_status()),
            volumes: volumes.len() as u64,
            snapshots: snapshots as u64,
            attached: self.devices.ids().len() as u64,
            pending_deletions: self.pool.pending_deletions(),
            warnings,
            pool: Some(v1::PoolStatus {
                ring: self.ring(&pool),
                recovery: convert::recovery(self.pool.recovery()).into(),
                state: pool.state.as_str().into(),
                id: pool.id,
                path: pool.path,
                size_bytes: pool.size_bytes,
                used_bytes: pool.used_bytes,
                free_bytes: pool.free_bytes,
                generation: pool.generation,
                sealed_bytes: pool.sealed_bytes,
                damaged_blocks: self.pool.damage().len() as u64,
                scrubbed_at: self.scrub.completed_at(),
                resequencing: resequencing.to_string(),
                resequenced_bytes,
            }),
        }
    }

    fn agent_status(&self) -> v1::AgentStatus {
        v1::AgentStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            started_at: self.started_at,
            transport: self.devices.kind().into(),
            transport_reason: self.devices.reason().into(),
            socket: self.config.socket.to_string_lossy().into_owned(),
            snapshots_dir: self.snapshots_mount.dir().map(|dir| dir.to_string_lossy().into_owned()),
            supervisor: self.supervisor.into(),
        }
    }

    fn ring(&self, pool: &PoolInfo) -> String {
        format!("{} ({})", pool.ring, self.ring.reason)
    }

    fn warnings(&self, pool: &PoolInfo) -> Vec<String> {
        let mut warnings: Vec<String> = pool_warning(pool).into_iter().collect();
        warnings.extend(self.pool.damage().iter().map(scrub::describe));
        warnings.extend(self.snapshots_mount.failure());
        for info in self.pool.volumes_with(&Labels::new()) {
            if let Some(why) = self.devices.shown(info.id, &info.name).failure {
                warnings.push(format!("volume {} has no device: {why}", info.name));
            }
        }
        if self.supervisor == "nobody" && !self.devices.ids().is_empty() {
            warnings.push(match self.devices.kind() {
                "ublk" => "devices in use wait if the agent dies: nobody starts it again".into(),
                _ => "devices in use fail if the agent dies: nobody keeps their descriptors".into(),
            });
        }
        warnings
    }

    /// Records that the pool got full, or has room again. `before` is what the last call answered.
    pub fn watch_pool(&self, before: PoolState) -> PoolState {
        let info = self.pool.info();
        if info.state != before {
            match pool_warning(&info) {
                None => self.events.info("pool_ok", Subject::default(), "the pool has room again"),
                Some(warning) if info.state == PoolState::Low => {
                    self.events.warn("pool_low", Subject::default(), warning);
                }
                Some(warning) => {
                    self.events.error(&format!("pool_{}", info.state.as_str()), Subject::default(), warning);
                }
            }
        }
        info.state
    }
}

/// What to say of a pool that is not well.
fn pool_warning(pool: &PoolInfo) -> Option<String> {
    let room = format!("{} MiB of {} are free", pool.free_bytes >> 20, pool.size_bytes >> 20);
    match pool.state {
        PoolState::Ok => None,
        PoolState::Low => Some(format!("the pool is low on space, snapshots are refused: {room}")),
        PoolState::Full => {
            Some(format!("the pool is full, new writes fail with ENOSPC: delete snapshots or volumes ({room})"))
        }
        PoolState::Failed => Some(
            "the pool failed an I/O on its metadata and takes no writes: look at the disk, then restart the agent".into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_that_is_not_ok_has_words() {
        let pool = |state| PoolInfo {
            id: String::new(),
            path: String::new(),
            size_bytes: 10 << 20,
            used_bytes: 0,
            free_bytes: 3 << 20,
            state,
            generation: 1,
            ring: String::new(),
            io: "io_uring",
            sealed_bytes: 0,
        };
        assert_eq!(pool_warning(&pool(PoolState::Ok)), None);
        for (state, word) in
            [(PoolState::Low, "3 MiB of 10"), (PoolState::Full, "ENOSPC"), (PoolState::Failed, "restart")]
        {
            assert!(pool_warning(&pool(state)).unwrap().contains(word), "{word}");
        }
    }
}
