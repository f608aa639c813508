//! A host: one network namespace, and ways to do things inside it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sched::{CloneFlags, setns};

use crate::process::Spawned;

/// One host of a lab. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    netns: String,
    index: u8,
    interfaces: AtomicU8,
    sender: OnceLock<OwnedFd>,
}

/// What tells an interface from all others of a lab, the same in every run.
pub(crate) struct Place {
    /// Locally administered.
    pub(crate) mac: String,
    /// Of no other host's interface: the two ends of a veth pair that have the same index, each in its namespace, look to
    /// the kernel like an interface on top of nothing, whose carrier it tells of within a second only, not at once.
    pub(crate) index: u32,
}

impl Host {
    pub(crate) fn create(name: &str, netns: String, index: u8) -> Result<Self> {
        output(Command::new("ip").args(["netns", "add", &netns]))?;
        let shared =
            Shared { name: name.to_owned(), netns, index, interfaces: AtomicU8::new(0), sender: OnceLock::new() };
        let host = Self { shared: Arc::new(shared) };
        // A new namespace takes some of its IPv4 settings from the machine: say what they are. Addresses are usable at once
        // (no duplicate address detection), and nothing is sent that no test asked for.
        for (key, value) in [
            ("net.ipv4.ip_forward", "0"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv4.conf.all.send_redirects", "0"),
            ("net.ipv4.conf.default.send_redirects", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
            ("net.ipv6.conf.all.disable_ipv6", "0"),
            ("net.ipv6.conf.default.disable_ipv6", "0"),
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.default.dad_transmits", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
            ("net.ipv6.conf.default.router_solicitations", "0"),
        ] {
            host.sysctl(key, value)?;
        }
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// The name given to [`Lab::host`](crate::Lab::host).
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// The name of the network namespace, as `ip netns` shows it.
    pub fn netns(&self) -> &str {
        &self.shared.netns
    }

    /// The file that stands for the network namespace.
    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(self.netns())
    }

    /// The packet socket that sends for it, once it is made.
    pub(crate) fn sender(&self) -> &OnceLock<OwnedFd> {
        &self.shared.sender
    }

    /// What this host's next interface is told apart by.
    pub(crate) fn next_place(&self) -> Place {
        let interface = self.shared.interfaces.fetch_add(1, Ordering::Relaxed);
        let host = self.shared.index;
        Place {
            mac: format!("02:00:00:00:{host:02x}:{interface:02x}"),
            index: 256 * (u32::from(host) + 1) + u32::from(interface),
        }
    }

    /// Runs `job` in a thread inside the namespace and returns what it returned. Sockets made there stay there.
    ///
    /// # Panics
    /// When `job` does.
    pub fn enter<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T> {
        let namespace = self.open_namespace()?;
        let ended = thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                    Ok::<T, nix::Error>(job())
                })
                .join()
        });
        match ended {
            Ok(outcome) => outcome.with_context(|| format!("cannot enter namespace {}", self.netns())),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A command that will run inside the network namespace, and otherwise in the same world as this process: the same
    /// mounts (so also the same BPF filesystem), unlike with `ip netns exec`. That the host is gone shows when it is run.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.open_namespace().map_err(|error| error.to_string());
        let enter = move || match &namespace {
            Ok(file) => setns(file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from),
            Err(_) => Err(std::io::Error::from(nix::Error::ENOENT)),
        };
        // SAFETY: between fork and exec only setns(2) is called, on a file opened before: nothing allocates or locks.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a program inside the namespace to its end and returns what it printed; failure is an error that tells all.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let (program, arguments) = argv.split_first().context("nothing to run")?;
        output(self.command(program).args(arguments)).with_context(|| format!("on host {}", self.name()))
    }

    /// Runs one `ip` command given as one string, e.g. `route add default via 10.8.0.1`.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let argv: Vec<&str> = std::iter::once("ip").chain(arguments.split_whitespace()).collect();
        self.run(&argv)
    }

    /// Starts a program inside the namespace; it is killed when the returned value is dropped.
    pub fn spawn(&self, argv: &[&str]) -> Result<Spawned> {
        let (program, arguments) = argv.split_first().context("nothing to run")?;
        let mut command = self.command(program);
        command.args(arguments);
        Spawned::start(command).with_context(|| format!("on host {}", self.name()))
    }

    /// Sets a sysctl of the namespace. Dots separate; use slashes when a name contains a dot (`net/ipv4/conf/eth0.5/…`).
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = sysctl_path(key);
        self.enter(|| fs::write(&path, value))?
            .with_context(|| format!("cannot set {key} to {value:?} on host {}", self.name()))
    }

    /// Reads a sysctl of the namespace, without the final newline.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = sysctl_path(key);
        let value = self
            .enter(|| fs::read_to_string(&path))?
            .with_context(|| format!("cannot read {key} on host {}", self.name()))?;
        Ok(value.trim_end().to_owned())
    }

    /// Lets the kernel of this host forward packets, as a router does.
    pub fn enable_kernel_forwarding(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    /// Adds an address such as `10.8.0.1/24` or `fd08::1/64`, usable at once.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {interface}{nodad}")).map(drop)
    }

    /// Adds a further address that is used only by whoever asks for it, never chosen by the kernel as a source.
    pub fn further_address(&self, interface: &str, address: &str) -> Result<()> {
        // IPv4 prefers the first address of a subnet by itself; IPv6 must be told.
        let deprecated = if address.contains(':') { " nodad preferred_lft 0" } else { "" };
        self.ip(&format!("addr add {address} dev {interface}{deprecated}")).map(drop)
    }

    /// Adds a route, e.g. `("default", "via 10.8.0.1")` or `("fd09::/64", "dev wg0")`.
    pub fn route(&self, destination: &str, how: &str) -> Result<()> {
        let family = if destination.contains(':') || how.contains(':') { "-6 " } else { "" };
        self.ip(&format!("{family}route add {destination} {how}")).map(drop)
    }

    /// Makes the neighbour entry of `address` on `interface` permanent: no ARP or neighbour discovery for it.
    pub fn neighbor(&self, interface: &str, address: IpAddr, mac: &str) -> Result<()> {
        self.ip(&format!("neigh replace {address} lladdr {mac} dev {interface} nud permanent")).map(drop)
    }

    /// The MAC address of an interface, as `02:00:00:00:00:00`.
    pub fn mac(&self, interface: &str) -> Result<String> {
        let link = |end: InterfaceAddress| {
            let link = *end.address.filter(|_| end.interface_name == interface)?.as_link_addr()?;
            // Of a device without Ethernet there is an address of no bytes.
            link.addr().filter(|_| link.halen() == 6)
        };
        let mac = self.enter(|| getifaddrs().map(|mut ends| ends.find_map(link)))??;
        let mac = mac.with_context(|| format!("{interface} on host {} has no MAC address", self.name()))?;
        Ok(mac.map(|byte| format!("{byte:02x}")).join(":"))
    }

    /// The index of an interface.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        self.enter(|| nix::net::if_::if_nametoindex(interface))?
            .with_context(|| format!("no interface {interface:?} on host {}", self.name()))
    }

    /// Turns features of an interface on or off, in the words of `ethtool -K`, e.g. `tx off gro on`.
    pub fn features(&self, interface: &str, words: &str) -> Result<()> {
        let argv: Vec<&str> = ["ethtool", "-K", interface].into_iter().chain(words.split_whitespace()).collect();
        self.run(&argv).map(drop)
    }

    fn open_namespace(&self) -> Result<File> {
        let path = self.netns_path();
        File::open(&path).with_context(|| format!("host {} is gone: no {}", self.name(), path.display()))
    }
}

fn sysctl_path(key: &str) -> PathBuf {
    let below = if key.contains('/') { key.to_owned() } else { key.replace('.', "/") };
    Path::new("/proc/sys").join(below)
}

/// Runs a command to its end: its standard output, or an error with everything it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::NotFound { " (is it installed?)" } else { "" };
        anyhow!("cannot run {shown}: {error}{hint}")
    })?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}: {} {}", output.status, complaint.trim(), printed.trim());
    }
    Ok(printed.into_owned())
}
