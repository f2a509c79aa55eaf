//! Growing an ext4 without CAP_SYS_RESOURCE, which the kernel demands for one that is mounted: unmount it, let the agent
//! grow it, mount it again. Only while nobody uses it: a process with an open file, or a container that runs, keeps it
//! where it is, and the call fails with everything mounted as before.

use super::device::Device;
use super::mounts::{self, Mount};
use super::{blocking, failed};
use crate::agent::{Connection, foreign};
use crate::checks::shown;
use api::v1::GrowFileSystemRequest;
use rustix::mount::{MountFlags, UnmountFlags};
use std::io;
use std::path::Path;
use tonic::Status;

/// Grows the file system on `device`, which is mounted at `path` and perhaps elsewhere, to the size of the device.
pub async fn grow(agent: &mut Connection, volume_id: u64, device: Device, path: &Path) -> Result<(), Status> {
    let place = path.to_owned();
    let taken = device.clone();
    let all = blocking(move || take_down(&taken).map_err(|error| in_use(&place, &error))).await?;
    let grown = agent.client.grow_file_system(GrowFileSystemRequest { volume_id }).await.map_err(foreign);
    let place = path.to_owned();
    // Whatever came of it, what was mounted is mounted again.
    blocking(move || put_up(&device, &all).map_err(failed("mount again", &place))).await?;
    grown.map(drop).map_err(|status| match status.code() {
        tonic::Code::FailedPrecondition => in_use(path, &io::Error::other(status.message().to_owned())),
        _ => status,
    })
}

fn in_use(path: &Path, error: &io::Error) -> Status {
    Status::failed_precondition(format!(
        "the volume has grown, the file system at {} cannot while it is used ({error}): the driver's container has no \
         CAP_SYS_RESOURCE; it grows when a pod next starts with it",
        shown(&path.to_string_lossy())
    ))
}

/// Unmounts the file system everywhere, or nowhere. What was mounted, in the order in which it was.
fn take_down(device: &Device) -> io::Result<Vec<Mount>> {
    let all: Vec<Mount> = mounts::table()?.into_iter().filter(|mount| mount.is_of(device)).collect();
    for (done, mount) in all.iter().rev().enumerate() {
        if let Err(error) = rustix::mount::unmount(&mount.mountpoint, UnmountFlags::NOFOLLOW) {
            put_up_from(&all, all.len() - done)?;
            return Err(error.into());
        }
    }
    Ok(all)
}

fn put_up(device: &Device, all: &[Mount]) -> io::Result<()> {
    let Some(first) = all.first() else { return Ok(()) };
    mounts::mount(device, &first.fs_type, &first.mountpoint, &first.options)?;
    put_up_from(all, 1)
}

/// Mounts again what comes after the first `there` mounts, which are in their place.
fn put_up_from(all: &[Mount], there: usize) -> io::Result<()> {
    let (first, rest) = (&all[0], &all[there..]);
    for mount in rest {
        let root = mount.root.strip_prefix(&first.root).unwrap_or(Path::new(""));
        let flags = if mount.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        mounts::bind(&first.mountpoint.join(root), &mount.mountpoint, flags)?;
    }
    Ok(())
}
