//! The BPF file system that pins live on: mounted where it is missing, and refused where pins would vanish.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::parent_id},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount, umount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Where systemd and everybody else mounts it.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes sure that `pins` can be made on a BPF file system that outlives this process.
///
/// Returns whether the file system had to be mounted.
pub fn ensure(pins: &Path) -> Result<bool> {
    let Some(existing) = pins.ancestors().find(|path| path.exists()) else {
        bail!("{} is not an absolute path", pins.display());
    };
    let mounted = is_bpffs(existing)?;
    if !mounted && !pins.starts_with(MOUNT_POINT) {
        bail!(
            "{} is not on a BPF file system, where pins must be; use a directory below {MOUNT_POINT}",
            existing.display()
        );
    }
    if vanishes(if mounted { existing } else { Path::new(MOUNT_POINT) }, mounted)? {
        bail!(
            "the pins would vanish when this command ends: it has a mount namespace of its own, as `ip netns exec` makes \
             them; enter only the network namespace: nsenter --net=/run/netns/NAME forwarder load ..."
        );
    }
    if mounted {
        return Ok(false);
    }
    mount(Some("bpf"), MOUNT_POINT, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount the BPF file system on {MOUNT_POINT}"))?;
    Ok(true)
}

/// Unmounts what [`ensure`] mounted.
pub fn unmount() -> Result<()> {
    umount(MOUNT_POINT).with_context(|| format!("cannot unmount {MOUNT_POINT}"))
}

fn is_bpffs(path: &Path) -> Result<bool> {
    let filesystem = statfs(path).with_context(|| format!("cannot look at the file system of {}", path.display()))?;
    Ok(filesystem.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether the mount at `path` belongs to a mount namespace made for this very command.
///
/// That is so when neither the parent process nor the first process sees it: a container's first process does,
/// and so does a shell that lives in a mount namespace of its own.
fn vanishes(path: &Path, mounted: bool) -> Result<bool> {
    let ours = mount_namespace("self").context("cannot tell our mount namespace")?;
    // A process that we may not look at is no evidence that the pins vanish.
    let shared = |process: &str| mount_namespace(process).is_none_or(|theirs| theirs == ours);
    if shared("1") || shared(&parent_id().to_string()) {
        return Ok(false);
    }
    let theirs: PathBuf = Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path));
    let same_file_system = match (fs::metadata(path), fs::metadata(theirs)) {
        (Ok(ours), Ok(theirs)) => ours.dev() == theirs.dev(),
        _ => false,
    };
    Ok(!(mounted && same_file_system))
}

fn mount_namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}
