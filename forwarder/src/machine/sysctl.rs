//! The two settings of the machine that forwarding needs, and how they come back.
//!
//! Routing look-ups of our programs name the loopback interface, and the kernel answers them only where forwarding
//! is on for it. Forwarding as a whole (`conf.all`) stays as it is: for IPv6 it would make a machine that is
//! configured by router advertisements lose its default route.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};

use crate::state::ChangedSysctl;

/// Below `/proc/sys/net`, which shows the network namespace of whoever looks.
const FORWARDING: [&str; 2] = ["/proc/sys/net/ipv4/conf/lo/forwarding", "/proc/sys/net/ipv6/conf/lo/forwarding"];

/// Switches forwarding on for the loopback interface; `changed` hears of each value before it is changed.
pub fn enable_forwarding(mut changed: impl FnMut(ChangedSysctl)) -> Result<()> {
    for path in FORWARDING.map(Path::new) {
        let old = match fs::read_to_string(path) {
            Ok(old) => old.trim().to_owned(),
            // A machine without IPv6 (or IPv4) has nothing to forward there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        if old == "1" {
            continue;
        }
        changed(ChangedSysctl { path: path.to_owned(), old });
        fs::write(path, "1").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Writes the old value back.
pub fn restore(sysctl: &ChangedSysctl) -> Result<()> {
    fs::write(&sysctl.path, &sysctl.old)
        .with_context(|| format!("cannot restore {} to {}", sysctl.path.display(), sysctl.old))
}
