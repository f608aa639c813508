//! Whether this user and kernel can run forwarder: asked before anything long starts, answered in one sentence.

use std::{io, thread};

use anyhow::{Result, bail};
use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::utsname::uname,
    unistd::geteuid,
};

/// The oldest kernel forwarder is tested on, Debian 12's, as (major, minor).
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// Checks root, kernel version and features; returns the kernel's name.
pub(crate) fn check() -> Result<String> {
    let kernel = uname()
        .map_or_else(|_| "an unknown kernel".to_owned(), |name| format!("Linux {}", name.release().to_string_lossy()));
    if !geteuid().is_root() {
        bail!(
            "loading BPF programs and making network namespaces needs root; from a user's shell: \
             sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask …"
        );
    }
    if let Some(version) = version(&kernel)
        && version < OLDEST_KERNEL
    {
        let (major, minor) = OLDEST_KERNEL;
        bail!("this is {kernel} and forwarder needs {major}.{minor} or later: boot a newer kernel");
    }
    for (program, name) in [(ProgramType::Xdp, "XDP"), (ProgramType::SchedClassifier, "TC")] {
        match is_program_supported(program) {
            Ok(true) => {}
            Ok(false) => bail!("{kernel} was built without BPF programs of type {name}"),
            Err(error) => bail!(refusal(&kernel, error)),
        }
    }
    for (map, name) in
        [(MapType::LruHash, "LRU hash"), (MapType::LpmTrie, "longest-prefix match"), (MapType::RingBuf, "ring buffer")]
    {
        if !is_map_supported(map).unwrap_or(true) {
            bail!("{kernel} was built without BPF maps of type {name}");
        }
    }
    for (helper, name) in [
        (BpfHelper::BPF_FUNC_timer_init, "bpf_timer"),
        (BpfHelper::BPF_FUNC_fib_lookup, "bpf_fib_lookup"),
        (BpfHelper::BPF_FUNC_redirect_neigh, "bpf_redirect_neigh"),
    ] {
        if !is_helper_supported(ProgramType::SchedClassifier, helper).unwrap_or(true) {
            bail!("{kernel} was built without the BPF helper {name}");
        }
    }
    // A thread of its own, so that only that thread ever sees the new namespace.
    let namespaces = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join();
    if let Ok(Err(error)) = namespaces {
        bail!("{kernel} makes no network namespaces here ({error}): a container needs CAP_SYS_ADMIN");
    }
    Ok(kernel)
}

fn refusal(kernel: &str, error: ProgramError) -> String {
    let cause = match error {
        ProgramError::SyscallError(error) => error.io_error,
        other => return format!("{kernel} answers a BPF probe with: {other}"),
    };
    match cause.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "root may not load BPF programs here ({cause}): a container needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and \
             kernel lockdown must be off"
        ),
        _ if cause.raw_os_error() == Some(nix::libc::ENOSYS) => {
            format!("{kernel} was built without BPF (CONFIG_BPF_SYSCALL)")
        }
        _ => format!("{kernel} answers a BPF probe with: {cause}"),
    }
}

fn version(kernel: &str) -> Option<(u32, u32)> {
    let mut numbers = kernel.trim_start_matches("Linux ").split(|separator: char| !separator.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn kernel_versions() {
        for (kernel, expected) in [
            ("Linux 6.1.0-37-cloud-amd64", Some((6, 1))),
            ("Linux 6.18.44-fc-v669", Some((6, 18))),
            ("Linux 5.10.0", Some((5, 10))),
            ("Linux 7.0-rc1", Some((7, 0))),
            ("an unknown kernel", None),
        ] {
            assert_eq!(version(kernel), expected, "{kernel}");
        }
    }
}
