//! NodeGetVolumeStats: how full a volume is.

use super::{blocking, device_of, failed, mounts, volume_and_path};
use crate::agent::Agent;
use crate::checks::shown;
use crate::csi::volume_usage::Unit;
use crate::csi::{self, VolumeUsage};
use tonic::Status;

/// Bytes and inodes of a file system, or the size of a device.
pub async fn stats(
    agent: &Agent,
    request: csi::NodeGetVolumeStatsRequest,
) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
    let (_, volume, path) = volume_and_path(agent, &request.volume_id, &request.volume_path).await?;
    let absent =
        Status::not_found(format!("the volume is not at volume_path {}", shown(&request.volume_path)));
    if volume.device.is_none() {
        return Err(absent);
    }
    let device = device_of(&volume).await?;
    let usage = blocking(move || {
        if device.is_node(&path) {
            let total = count(volume.size_bytes);
            return Ok(vec![VolumeUsage { total, unit: Unit::Bytes.into(), ..Default::default() }]);
        }
        let mount = mounts::at(&path).map_err(failed("read the mount table", &path))?;
        if !mount.is_some_and(|mount| mount.is_of(&device)) {
            return Err(absent);
        }
        let stat =
            rustix::fs::statvfs(&path).map_err(|errno| failed("ask how full it is", &path)(errno.into()))?;
        let bytes = |blocks: u64| count(blocks.saturating_mul(stat.f_frsize));
        Ok(vec![
            VolumeUsage {
                available: bytes(stat.f_bavail),
                total: bytes(stat.f_blocks),
                used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
                unit: Unit::Bytes.into(),
            },
            VolumeUsage {
                available: count(stat.f_ffree),
                total: count(stat.f_files),
                used: count(stat.f_files.saturating_sub(stat.f_ffree)),
                unit: Unit::Inodes.into(),
            },
        ])
    })
    .await?;
    Ok(csi::NodeGetVolumeStatsResponse { usage, volume_condition: None })
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
