//! From what the store tells to what the API carries.

use super::devices::Devices;
use api::v1;
use store::{Consistency, Recovery, SnapshotBrief, SnapshotInfo, VolumeInfo};

/// A volume with its device.
pub fn volume(info: VolumeInfo, devices: &Devices) -> v1::Volume {
    let shown = devices.shown(info.id, &info.name);
    v1::Volume {
        attached: shown.device.is_some(),
        device: shown.device.map(|path| path.to_string_lossy().into_owned()),
        transport: shown.transport.map(str::to_owned),
        attach_error: shown.failure,
        name: info.name,
        id: info.id,
        size_bytes: info.size_bytes,
        used_bytes: info.used_bytes,
        exclusive_bytes: info.exclusive_bytes,
        origin: info.origin,
        created_at: info.created_at,
        snapshots: info.snapshots,
        labels: info.labels.into_iter().collect(),
    }
}

/// A snapshot.
pub fn snapshot(info: SnapshotInfo) -> v1::Snapshot {
    v1::Snapshot {
        volume: info.volume,
        volume_id: info.volume_id,
        name: info.name,
        id: info.id,
        size_bytes: info.size_bytes,
        exclusive_bytes: info.exclusive_bytes,
        created_at: info.created_at,
        consistency: consistency(info.consistency).into(),
        clones: info.clones,
        labels: info.labels.into_iter().collect(),
    }
}

/// A snapshot without what takes counting.
pub fn brief(volume: &str, of: SnapshotBrief) -> v1::Snapshot {
    v1::Snapshot {
        volume: volume.to_owned(),
        name: of.name,
        id: of.id,
        size_bytes: of.size_bytes,
        created_at: of.created_at,
        ..v1::Snapshot::default()
    }
}

/// A consistency level.
pub fn consistency(level: Consistency) -> v1::Consistency {
    match level {
        Consistency::Fs => v1::Consistency::Fs,
        Consistency::Crash => v1::Consistency::Crash,
        Consistency::Detached => v1::Consistency::Detached,
    }
}

/// The word for how the pool was found.
pub fn recovery(recovery: Recovery) -> &'static str {
    match recovery {
        Recovery::Clean => "clean",
        Recovery::PowerLoss => "power-loss",
        Recovery::Resumed => "resumed",
        Recovery::RingLost => "ring-lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::transport::Chosen;
    use std::path::Path;

    #[test]
    fn every_field_arrives() {
        let devices = Devices::new(
            Chosen { transport: None, others: Vec::new(), reason: "test".into() },
            Path::new("/dev/x"),
            "p".into(),
        );
        devices.set_failure(7, Some("no fuse".into()));
        let info = VolumeInfo {
            name: "v".into(),
            id: 7,
            size_bytes: 8192,
            used_bytes: 4096,
            exclusive_bytes: 1,
            origin: Some("o@s".into()),
            created_at: -5,
            attached: true,
            snapshots: vec!["a".into(), "b".into()],
            labels: [("k".to_owned(), "w".to_owned())].into(),
        };
        let expected = v1::Volume {
            name: "v".into(),
            id: 7,
            size_bytes: 8192,
            used_bytes: 4096,
            exclusive_bytes: 1,
            origin: Some("o@s".into()),
            created_at: -5,
            attached: false,
            device: None,
            transport: None,
            snapshots: vec!["a".into(), "b".into()],
            labels: [("k".to_owned(), "w".to_owned())].into(),
            attach_error: Some("no fuse".into()),
        };
        assert_eq!(volume(info, &devices), expected);
    }

    #[test]
    fn a_snapshot_keeps_its_level() {
        for (level, shown) in [
            (Consistency::Fs, v1::Consistency::Fs),
            (Consistency::Crash, v1::Consistency::Crash),
            (Consistency::Detached, v1::Consistency::Detached),
        ] {
            let info = SnapshotInfo {
                volume: "v".into(),
                volume_id: 4,
                name: "s".into(),
                id: 9,
                size_bytes: 4096,
                exclusive_bytes: 2,
                created_at: 3,
                consistency: level,
                clones: vec!["c".into()],
                labels: [("k".to_owned(), "w".to_owned())].into(),
            };
            let wire = snapshot(info);
            assert_eq!(wire.consistency(), shown);
            assert_eq!((wire.volume.as_str(), wire.volume_id), ("v", 4));
            assert_eq!((wire.name.as_str(), wire.id), ("s", 9));
            assert_eq!((wire.size_bytes, wire.exclusive_bytes, wire.created_at), (4096, 2, 3));
            assert_eq!((wire.clones, wire.labels["k"].as_str()), (vec!["c".to_owned()], "w"));
        }
    }
}
