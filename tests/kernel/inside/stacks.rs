//! Other block layers on a volume: LVM and dm-crypt, with an agent killed under them.

use integration_tests::rig::{Rig, ended, host_tool, noise, tool, unmount};
use std::fs;
use std::path::{Path, PathBuf};

/// A name of the device mapper that goes with the test.
struct Mapped {
    name: &'static str,
    remove: fn(&str),
}

impl Mapped {
    fn path(&self) -> PathBuf {
        // There is no udev in the test kernel.
        tool("dmsetup", ["mknodes"]);
        Path::new("/dev/mapper").join(self.name)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        (self.remove)(self.name);
    }
}

/// Files on a layer over a volume, through a kill, found again when the layer was taken down and set up again.
fn files_survive(rig: &Rig, layer: impl Fn(&Path) -> Mapped) {
    rig.ok("-q volume create v --size 256M");
    let device = rig.attach("v");
    let data = noise(4, 64 << 20);
    {
        let mapped = layer(&device);
        tool("mkfs.ext4", ["-q".as_ref(), mapped.path().as_os_str()]);
        let dir = rig.mount(&mapped.path(), "mnt", "defaults");
        fs::write(dir.join("data"), &data[..32 << 20]).expect("the volume takes it");
        rig.kill_and_wait();
        fs::write(dir.join("data"), &data).expect("the volume takes it");
        unmount(&dir);
    }
    rig.ok("-q volume detach v");
    let device = rig.attach("v");
    {
        let mapped = layer(&device);
        tool("e2fsck", ["-fn".as_ref(), mapped.path().as_os_str()]);
        let dir = rig.mount(&mapped.path(), "mnt", "defaults");
        assert!(fs::read(dir.join("data")).expect("it is there") == data, "it is what was written");
        unmount(&dir);
    }
    rig.ok("-q volume detach v");
    rig.stop_and_check();
}

#[test]
fn encryption_works_on_a_volume() {
    let rig = Rig::new("1G").expect("this kernel has all that is needed");
    fs::write(rig.path("key"), noise(5, 64)).expect("the directory is writable");
    let key = rig.path("key").display().to_string();
    files_survive(&rig, |device| {
        let device = device.display().to_string();
        let words = |command: &str| format!("-q --key-file {key} {command}");
        let is_luks = ended(host_tool("cryptsetup").args(["isLuks", &device])).code == Some(0);
        if !is_luks {
            let format = words("--pbkdf pbkdf2 --pbkdf-force-iterations 1000 luksFormat");
            tool("cryptsetup", format.split(' ').chain([device.as_str()]));
        }
        tool("cryptsetup", words("open").split(' ').chain([device.as_str(), "secret"]));
        Mapped { name: "secret", remove: |name| drop(ended(host_tool("cryptsetup").args(["close", name]))) }
    });
}

/// LVM's tools as they are where no udev answers them and nothing may be written to the system's directories.
fn lvm<'a>(words: impl IntoIterator<Item = &'a str>) -> integration_tests::rig::Ended {
    let config = "activation{udev_sync=0 udev_rules=0 monitoring=0} backup{backup=0 archive=0} \
                  devices{use_devicesfile=0 obtain_device_list_from_udev=0 types=[\"ublkb\",16]} global{use_lvmpolld=0}";
    let mut lvm = host_tool("lvm");
    lvm.args(words).args(["--config", config]);
    ended(&mut lvm)
}

#[test]
fn lvm_works_on_a_volume() {
    let rig = Rig::new("1G").expect("this kernel has all that is needed");
    files_survive(&rig, |device| {
        // Its own name of the device: links below other directories are none that LVM scans.
        let node = fs::canonicalize(device).expect("the device is there").display().to_string();
        if lvm(["pvs", &node]).code != Some(0) {
            lvm(["pvcreate", "-q", &node]).with(0);
            lvm(["vgcreate", "-q", "stack", &node]).with(0);
            lvm(["lvcreate", "-q", "-y", "-W", "n", "-l", "100%FREE", "-n", "files", "stack"]).with(0);
        }
        lvm(["vgchange", "-a", "y", "stack"]).with(0);
        Mapped { name: "stack-files", remove: |_| drop(lvm(["vgchange", "-a", "n", "stack"])) }
    });
}
