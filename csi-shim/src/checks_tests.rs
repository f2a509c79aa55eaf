//! Tests of [`super`].

use super::*;
use crate::csi::Topology;
use crate::csi::volume_capability::{AccessMode, BlockVolume, MountVolume};
use tonic::Code;

fn bytes(required_bytes: i64, limit_bytes: i64) -> CapacityRange {
    CapacityRange { required_bytes, limit_bytes }
}

#[test]
fn names_of_any_kind_up_to_128_bytes() {
    for good in ["pvc-1", "a b/c@d", "größe", "..", "x\ty", &"é".repeat(64)] {
        name(good).unwrap();
        let pool = pool_name(good);
        assert!(!pool.contains(['/', '@', ' ', '\t']) && !pool.starts_with('.'), "{pool}");
    }
    assert_eq!(pool_name("pvc-1"), "pvc-1");
    assert_ne!(pool_name("a b"), pool_name("a  b"));
    for bad in ["", "a\0", "a\x1b[31m", "\u{85}", &"x".repeat(129), &"x".repeat(10 << 20)] {
        assert_eq!(name(bad).unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn what_is_shown_is_short_and_escaped() {
    assert_eq!(shown("a\0\n"), "`a\\0\\n`");
    assert!(shown(&"x".repeat(10 << 20)).len() < 120);
}

#[test]
fn paths_are_absolute_and_plain() {
    assert_eq!(path("p", "/a//b/").unwrap(), Path::new("/a/b"));
    for bad in ["", "a/b", "/", "/a/../b", "/a/..", "some/path", "/a\nb", &format!("/{}", "x".repeat(5000))] {
        assert_eq!(path("p", bad).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
    }
}

#[test]
fn maps_are_small_and_plain() {
    let one = |value: &str| HashMap::from([("k".to_owned(), value.to_owned())]);
    map("parameters", &one("w")).unwrap();
    for bad in [one("a\nb"), one(&"x".repeat(5000)), one(&"x".repeat(10 << 20))] {
        assert_eq!(map("parameters", &bad).unwrap_err().code(), Code::InvalidArgument);
    }
}

fn wanted(access_type: Option<AccessType>, mode: Mode) -> VolumeCapability {
    VolumeCapability { access_type, access_mode: Some(AccessMode { mode: mode.into() }) }
}

#[test]
fn a_volume_is_for_one_node() {
    let block = || Some(AccessType::Block(BlockVolume {}));
    for mode in [
        Mode::SingleNodeWriter,
        Mode::SingleNodeReaderOnly,
        Mode::SingleNodeSingleWriter,
        Mode::SingleNodeMultiWriter,
    ] {
        let found = capability(Some(&wanted(block(), mode))).unwrap();
        assert_eq!(found, Capability { access: Access::Block, mode });
    }
    let modes =
        [Mode::Unknown, Mode::MultiNodeReaderOnly, Mode::MultiNodeSingleWriter, Mode::MultiNodeMultiWriter];
    for refused in
        modes.map(|mode| wanted(block(), mode)).iter().chain([&wanted(None, Mode::SingleNodeWriter)])
    {
        assert_eq!(capability(Some(refused)).unwrap_err().code(), Code::InvalidArgument);
    }
    assert_eq!(capability(None).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(capabilities(&[]).unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn mounts_have_known_file_systems_and_plain_options() {
    let mount = |fs: &str, flags: &[&str]| {
        let mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mount = MountVolume { fs_type: fs.into(), mount_flags, volume_mount_group: String::new() };
        capability(Some(&wanted(Some(AccessType::Mount(mount)), Mode::SingleNodeWriter)))
    };
    let found = mount("xfs", &["noatime,nodev", "ro"]).unwrap().access;
    assert_eq!(
        found,
        Access::Mount { fs: "xfs".into(), options: vec!["noatime".into(), "nodev".into(), "ro".into()] }
    );
    mount("", &[]).unwrap();
    for (fs, flag) in [("zfs", ""), ("../ext4", ""), ("ext4", "a\nb"), ("ext4", "x".repeat(5000).as_str())] {
        assert_eq!(mount(fs, &[flag]).unwrap_err().code(), Code::InvalidArgument);
    }
}

#[test]
fn sizes_are_what_is_asked_for_in_whole_blocks() {
    fn size(range: Option<&CapacityRange>, source: Option<u64>, floor: u64) -> Result<u64, Code> {
        new_size(range, source, floor).map_err(|status| status.code())
    }
    assert_eq!(size(None, None, 0), Ok(1 << 30));
    assert_eq!(size(None, Some(8192), 0), Ok(8192));
    assert_eq!(size(Some(&bytes(5000, 0)), None, 0), Ok(8192));
    assert_eq!(size(Some(&bytes(0, 10_000)), None, 0), Ok(8192));
    assert_eq!(size(Some(&bytes(16384, 0)), Some(8192), 0), Ok(16384));
    assert_eq!(size(Some(&bytes(4096, 0)), None, 1 << 20), Ok(1 << 20));
    for (range, source, floor) in [
        (bytes(-1, 0), None, 0),
        (bytes(0, -1), None, 0),
        (bytes(8192, 4096), None, 0),
        (bytes(4096, 0), Some(8192), 0),
        (bytes(0, 4096), Some(8192), 0),
        (bytes(5000, 5000), None, 0),
        (bytes(4096, 8192), None, 1 << 20),
        (bytes(0, 100), None, 0),
        (bytes(i64::MAX, 0), None, 0),
    ] {
        assert_eq!(size(Some(&range), source, floor), Err(Code::OutOfRange), "{range:?} {source:?}");
    }
}

#[test]
fn topology_is_a_choice_of_nodes() {
    let on = |node: &str| Topology { segments: HashMap::from([(TOPOLOGY_KEY.to_owned(), node.to_owned())]) };
    let elsewhere = Topology { segments: HashMap::from([("zone".to_owned(), "a".to_owned())]) };
    let allows = |requisite: &[Topology], preferred: &[Topology]| {
        let requirement =
            TopologyRequirement { requisite: requisite.to_vec(), preferred: preferred.to_vec() };
        allows_node(Some(&requirement), "a")
    };
    assert!(allows_node(None, "a"));
    assert!(allows(&[], &[]));
    assert!(allows(&[on("b"), on("a")], &[on("b")]));
    assert!(allows(&[], &[on("a")]));
    assert!(!allows(&[on("b")], &[on("a")]));
    assert!(!allows(&[], &[on("b")]));
    assert!(!allows(&[elsewhere], &[]));
}
