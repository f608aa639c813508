//! Programs of the machine and the Debian packages they come in.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use crate::{progress::Step, workspace::find_program};

/// A program somebody here starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    /// What is looked for in the search path.
    pub(crate) program: &'static str,
    /// The Debian 12 package to install when it is not there.
    pub(crate) package: &'static str,
}

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// To build: rustc's linker, and whatever apt-get or cargo install start.
pub(crate) const BUILD_TOOLS: &[Tool] = &[tool("cc", "gcc")];

/// To run tests, demo and bench.
pub(crate) const RUN_TOOLS: &[Tool] = &[
    // Labs: namespaces, links, addresses, routes, neighbours; offloads of veth; entering only the network namespace.
    tool("ip", "iproute2"),
    tool("tc", "iproute2"),
    tool("ethtool", "ethtool"),
    tool("nsenter", "util-linux"),
    tool("sysctl", "procps"),
    // What people use today, to compare with.
    tool("nft", "nftables"),
    tool("iptables", "iptables"),
    tool("conntrack", "conntrack"),
    // Clients and servers.
    tool("ping", "iputils-ping"),
    tool("curl", "curl"),
    tool("socat", "socat"),
    tool("iperf3", "iperf3"),
    tool("python3", "python3-minimal"),
    tool("ssh", "openssh-client"),
    tool("sshd", "openssh-server"),
    tool("dnsmasq", "dnsmasq-base"),
    tool("dig", "bind9-dnsutils"),
    tool("traceroute", "traceroute"),
    // Who tells a program what the NAT that it is behind is like.
    tool("turnserver", "coturn"),
    tool("turnutils_natdiscovery", "coturn"),
    tool("aiosmtpd", "python3-aiosmtpd"),
    // Who asks for a neighbour, and tells hosts of their prefix.
    tool("arping", "arping"),
    tool("radvd", "radvd"),
    // A tunnel, where the kernel has no WireGuard.
    tool("wg-quick", "wireguard-tools"),
    tool("wireguard-go", "wireguard-go"),
    // To look at packets, programs and maps.
    tool("tcpdump", "tcpdump"),
    tool("bpftool", "bpftool"),
];

/// To boot other kernels.
pub(crate) const GUEST_TOOLS: &[Tool] = &[
    // With it comes virtiofsd, which shares the host's files with the guest, at a place outside the search path.
    tool("qemu-system-x86_64", "qemu-system-x86"),
    tool("busybox", "busybox-static"),
    tool("depmod", "kmod"),
    tool("setpriv", "util-linux"),
];

/// Installs the packages of those tools that are missing.
pub(crate) fn ensure(tools: &[Tool]) -> Result<()> {
    let mut missing: Vec<&str> =
        tools.iter().filter(|tool| find_program(tool.program).is_none()).map(|tool| tool.package).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs those of these Debian packages that are not installed, with apt-get. Nothing is removed for them.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let packages: Vec<&str> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find_program("apt-get").is_none() {
        bail!(
            "this machine lacks some programs and has no apt-get; install what Debian calls {list}, then run this again"
        );
    }
    if !geteuid().is_root() {
        bail!("Debian packages are missing ({list}) and installing them needs root; run as root: cargo xtask setup");
    }
    let step = Step::begin(format!("Installing Debian packages: {list}"));
    let services: Vec<&str> =
        SERVICES.iter().filter(|(package, _)| packages.contains(package)).map(|(_, service)| *service).collect();
    let kept_from_starting = keep_from_starting(&services);
    // The package lists of a fresh machine are empty or old, those of most others are good: refresh them only if needed.
    if step.run(apt_get("install").args(&packages)).is_err() {
        step.run(&mut apt_get("update"))?;
        step.run(apt_get("install").args(&packages).args(in_step(&packages))).with_context(|| {
            format!(
                "Debian packages could not be installed: {list}. They are those of Debian 12 with its security updates \
                 (bookworm-security)"
            )
        })?;
    }
    drop(kept_from_starting);
    step.done();
    Ok(())
}

/// Packages with another one that may be there from a later release of Debian, and then keeps them out: it goes back to the
/// version that they have, and nothing has to be removed.
const COMPANIONS: [(&str, &str); 1] = [("qemu-system-x86", "qemu-utils")];

/// What else to tell apt-get so that the companions of `packages` are in step with them.
fn in_step(packages: &[&str]) -> Vec<String> {
    let mut arguments = Vec::new();
    for (package, companion) in COMPANIONS {
        if packages.contains(&package)
            && is_installed(companion)
            && let Some(version) = candidate(package)
        {
            arguments.extend(["--allow-downgrades".to_owned(), format!("{companion}={version}")]);
        }
    }
    arguments
}

/// The version of a package that would be installed.
fn candidate(package: &str) -> Option<String> {
    let shown = Command::new("apt-cache").args(["show", "--no-all-versions", package]).output().ok()?;
    let text = String::from_utf8(shown.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Version: ")).map(str::to_owned)
}

/// Packages that bring a service which would start at once and at every boot: only their programs are wanted.
const SERVICES: [(&str, &str); 3] =
    [("coturn", "coturn.service"), ("openssh-server", "ssh.service"), ("radvd", "radvd.service")];

/// Keeps services from starting while their packages are installed; where that is over, they do not start by
/// themselves, but can be started.
struct KeptFromStarting<'a>(&'a [&'a str]);

fn keep_from_starting<'a>(services: &'a [&'a str]) -> KeptFromStarting<'a> {
    systemctl("mask", services);
    KeptFromStarting(services)
}

impl Drop for KeptFromStarting<'_> {
    fn drop(&mut self) {
        systemctl("unmask", self.0);
        systemctl("disable", self.0);
    }
}

/// Where there is no systemd, no service starts by it.
fn systemctl(verb: &str, services: &[&str]) {
    if !services.is_empty() && Path::new("/run/systemd/system").exists() {
        let _ = Command::new("systemctl").args(["--quiet", verb]).args(services).status();
    }
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|status| status.stdout == b"installed")
}

fn apt_get(command: &str) -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300", command]);
    if command == "install" {
        apt_get.args(["--yes", "--no-install-recommends", "--no-remove"]);
    }
    apt_get
}
