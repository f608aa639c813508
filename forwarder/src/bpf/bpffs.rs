//! The BPF file system that pins live on: mounted where it is missing, and refused where pins would vanish.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
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

/// Whether the mount at `path` is seen by this very command alone.
///
/// `ip netns exec` gives its command a mount namespace that ends with it. A container's processes, or a shell in a
/// mount namespace of its own, are there to see the pins after us.
fn vanishes(path: &Path, mounted: bool) -> Result<bool> {
    let ours = mount_namespace("self").context("cannot tell our mount namespace; is /proc mounted?")?;
    if mounted && same_file_system(path, &Path::new("/proc/1/root").join(path.strip_prefix("/").unwrap_or(path))) {
        return Ok(false);
    }
    let own_id = std::process::id().to_string();
    let processes = fs::read_dir("/proc").context("cannot list /proc")?;
    let seen_by_others = processes
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != own_id)
        .any(|process| mount_namespace(&process).is_some_and(|theirs| theirs == ours));
    Ok(!seen_by_others)
}

fn same_file_system(ours: &Path, theirs: &Path) -> bool {
    match (fs::metadata(ours), fs::metadata(theirs)) {
        (Ok(ours), Ok(theirs)) => ours.dev() == theirs.dev(),
        _ => false,
    }
}

fn mount_namespace(process: &str) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/ns/mnt")).ok()
}
