//! Publications whose agent has ended answer nothing but errors. They show the snapshots again as soon as an agent does.
//!
//! kubelet could be asked for that (`requiresRepublish`). But it would then publish every volume of every pod over and over,
//! also while a pod starts, which made every third start 300 ms longer. So the mount table is watched.

use super::{FLAGS, shown_at};
use crate::agent::Agent;
use crate::node::{Mount, bind, mount_table};
use crate::sys;
use std::fs::File;
use std::io;
use std::path::{Component, Path};
use std::time::Duration;
use tokio::io::Interest;

/// What the mount table calls the agent's snapshots.
const FS_TYPE: &str = "fuse.cowslip";
/// kubelet has the mounts of CSI volumes in directories of that name.
const VOLUMES: &str = "kubernetes.io~csi";
/// Mounts come in groups.
const SETTLE: Duration = Duration::from_millis(200);
/// While publications wait for an agent.
const RETRY: Duration = Duration::from_secs(1);

/// Mounts publications again whenever that is needed, for ever.
pub async fn keep(agent: &Agent) {
    loop {
        let Err(error) = watch(agent).await;
        tracing::warn!("watching the mount table, tried again: {error}");
        tokio::time::sleep(RETRY).await;
    }
}

async fn watch(agent: &Agent) -> io::Result<std::convert::Infallible> {
    let table = sys::watched(File::open("/proc/self/mountinfo")?)?;
    loop {
        let waiting = show_again(agent).await?;
        let change = async { table.ready(Interest::PRIORITY).await.map(|mut change| change.clear_ready()) };
        match waiting {
            false => change.await?,
            true => tokio::time::timeout(RETRY, change).await.unwrap_or(Ok(()))?,
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Mounts again what no agent serves any more. True: something of that is left.
async fn show_again(agent: &Agent) -> io::Result<bool> {
    let table = mount_table()?;
    if publications(&table).next().is_none() {
        return Ok(false);
    }
    let status = async { agent.connect().await?.status().await };
    let Ok(Some(status)) = status.await.map(|told| told.agent) else { return Ok(true) };
    // Shown nowhere: then nothing is to be had until that changes, which takes a mount.
    let Some(tree) = status.snapshots_dir else { return Ok(false) };
    let Some(live) = table.iter().rfind(|mount| mount.mountpoint == Path::new(&tree)) else {
        return Ok(true);
    };
    let mut waiting = false;
    // Which volume a pod may see was decided when it was published: the dead mount has its name.
    for dead in publications(&table).filter(|mount| mount.device != live.device) {
        let Some(volume) = dead.root.file_name() else { continue };
        let (from, target) = (Path::new(&tree).join(volume), dead.mountpoint.clone());
        let done = tokio::task::spawn_blocking(move || match shown_at(&target) {
            true => Ok(false),
            false => bind(&from, &target, FLAGS).map(|()| true),
        });
        let target = dead.mountpoint.display();
        match done.await? {
            Ok(true) => tracing::info!(%target, "the snapshots are shown again"),
            Ok(false) => {}
            // Of a volume that is gone, or unpublished just now.
            Err(error) => {
                tracing::debug!(%target, "the snapshots cannot be shown again: {error}");
                waiting = true;
            }
        }
    }
    Ok(waiting)
}

/// What shows the snapshots of one volume to a pod, and lies on top.
fn publications(table: &[Mount]) -> impl Iterator<Item = &Mount> {
    table
        .iter()
        .enumerate()
        .filter(|(at, mount)| {
            mount.fs_type == FS_TYPE
                && mount.root.components().count() == 2
                && mount.mountpoint.components().any(|part| part == Component::Normal(VOLUMES.as_ref()))
                && !table[at + 1..].iter().any(|later| later.mountpoint == mount.mountpoint)
        })
        .map(|(_, mount)| mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(mountpoint: &str, root: &str, fs_type: &str) -> Mount {
        Mount {
            mountpoint: mountpoint.into(),
            root: root.into(),
            device: (0, 40),
            fs_type: fs_type.into(),
            source: "cowslip".into(),
            read_only: true,
            options: Vec::new(),
        }
    }

    #[test]
    fn publications_are_told_from_other_mounts() {
        let pod = |name: &str| format!("/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/{name}/mount");
        let table = [
            mount("/snapshots", "/", FS_TYPE),
            mount(&pod("one"), "/v", FS_TYPE),
            mount(&pod("data"), "/", "ext4"),
            mount(&pod("other"), "/v", "fuse.sshfs"),
            mount("/home/somebody/v", "/v", FS_TYPE),
            mount("/var/lib/kubelet/pods/1/volume-subpaths/one/c/0", "/v/latest", FS_TYPE),
            mount(&pod("two"), "/v", FS_TYPE),
            mount(&pod("two"), "/w", FS_TYPE),
            mount(&pod("hidden"), "/v", FS_TYPE),
            mount(&pod("hidden"), "/", "tmpfs"),
        ];
        let found: Vec<_> = publications(&table).map(|mount| (&*mount.mountpoint, &*mount.root)).collect();
        let wanted = [(pod("one"), "/v"), (pod("two"), "/w")];
        assert_eq!(found, wanted.each_ref().map(|(at, root)| (Path::new(at), Path::new(root))));
    }
}
