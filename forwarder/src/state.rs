//! What an instance has to remember that the kernel does not: `/run/forwarder/NAME.json`.

pub mod uplinks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    bpf::attach::TcAttachment,
    config::{Config, Mode},
};
pub use uplinks::UplinkState;

/// Where state files are. Like the pins, it does not survive a restart of the machine.
pub const DIRECTORY: &str = "/run/forwarder";
/// The version of the file's format.
const FORMAT: u32 = 1;

/// A loaded instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The version of this format.
    pub format: u32,
    /// The version of the program that loaded it.
    pub program: String,
    /// Seconds since 1970.
    pub loaded_at: u64,
    /// Where its maps and links are pinned.
    pub pins: PathBuf,
    /// The file it was configured from; none without one.
    pub config_path: Option<PathBuf>,
    /// The rules that run, those added since included.
    pub config: Config,
    /// What `list` says about each rule.
    pub rules: Vec<RuleState>,
    /// What `list` says about each masquerade.
    #[serde(default)]
    pub masquerades: Vec<MasqueradeState>,
    /// What `list` says about each steer.
    #[serde(default)]
    pub steers: Vec<SteerState>,
    /// What `status` says about each uplink.
    #[serde(default)]
    pub uplinks: Vec<UplinkState>,
    /// What `list` says about each neighbour answered for.
    #[serde(default)]
    pub neighbors: Vec<NeighborState>,
    /// Where its programs hang.
    pub interfaces: Vec<AttachedInterface>,
    /// Which counter each rule has.
    pub counters: BTreeMap<String, u32>,
    /// Settings of the machine that `load` changed.
    pub sysctls: Vec<ChangedSysctl>,
    /// The network namespace it works in: the device and inode of its file.
    pub network_namespace: (u64, u64),
    /// Whether `load` mounted the BPF file system.
    pub mounted_bpffs: bool,
    /// The machine's addresses when the rules were last worked out: flows of those that it has lost end.
    #[serde(default)]
    pub addresses: BTreeSet<IpAddr>,
    /// What the machine does not have yet and rules wait for, in words.
    #[serde(default)]
    pub waiting: Vec<String>,
}

/// A rule as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleState {
    /// Its name.
    pub name: String,
    /// What it answers for, as on this machine.
    pub listen: Vec<String>,
    /// Its protocols; empty for the default.
    pub protocol: Vec<String>,
    /// Its backend.
    pub to: String,
    /// What the backend sees.
    pub source: String,
    /// Where the backend sees the clients: those that it cannot see, for it would answer them directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hairpin: Option<HairpinState>,
    /// Its clients; empty for everyone.
    pub allow: Vec<String>,
    /// Whether it keeps no flows.
    pub stateless: bool,
    /// What TCP's segment size is lowered to, in words.
    #[serde(default)]
    pub mss_clamp: String,
    /// Why it has to keep flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not_stateless: Option<String>,
}

impl RuleState {
    /// What the backend sees, in words: "preserve", and below it whom it sees as one of our addresses.
    pub fn describe_source(&self) -> String {
        let hairpin = |hairpin: &HairpinState| format!("{}\n{}: {}", self.source, hairpin.clients, hairpin.source);
        self.hairpin.as_ref().map_or_else(|| self.source.clone(), hairpin)
    }
}

/// [`crate::config::Hairpin`] as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HairpinState {
    /// A prefix.
    pub clients: String,
    /// The address of ours that the backend sees in place of theirs.
    pub source: String,
}

/// A masquerade as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasqueradeState {
    /// Its name.
    pub name: String,
    /// The hosts, each prefix with its way out.
    pub ways: Vec<WayOutState>,
    /// What is let in.
    pub filtering: String,
}

/// How the hosts of a prefix go out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayOutState {
    /// The hosts.
    pub from: String,
    /// The interface.
    pub out: String,
    /// The address that they have outside.
    pub address: String,
}

/// A steer as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteerState {
    /// Its name.
    pub name: String,
    /// The sources.
    pub from: Vec<String>,
    /// The protocols; empty for all.
    pub protocol: Vec<String>,
    /// The source ports; none for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// The line.
    pub interface: String,
    /// The routers at its other end.
    pub gateway: Vec<String>,
    /// What its packets leave by now: the interface, with the uplink that takes the line's place if one does.
    #[serde(default)]
    pub leaves_by: Vec<String>,
}

impl SteerState {
    /// The packets that it is for, in words.
    pub fn kinds(&self) -> String {
        let protocols = if self.protocol.is_empty() { "all".to_owned() } else { self.protocol.join(", ") };
        match &self.port {
            Some(port) if self.protocol.is_empty() => format!("tcp, udp from port {port}"),
            Some(port) => format!("{protocols} from port {port}"),
            None => protocols,
        }
    }
}

/// A `[[neighbor]]` as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborState {
    /// Its name.
    pub name: String,
    /// The interface where it is asked.
    pub interface: String,
    /// The addresses that are answered for; empty while an interface is waited for.
    #[serde(rename = "for")]
    pub addresses: Vec<String>,
    /// The interface where they live.
    pub via: String,
    /// When they are answered for.
    pub answer: String,
}

/// An interface that programs hang on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedInterface {
    /// Its name at load.
    pub name: String,
    /// The kernel's index, which outlives a new name.
    pub index: u32,
    /// Its Ethernet address at load, which the programs compare with; none without a link header.
    pub mac: Option<[u8; 6]>,
    /// Its slot in the interface counters and in the names of pins.
    pub slot: u32,
    /// The mode in use, never `auto`.
    pub mode: Mode,
    /// Why this one.
    pub why: String,
    /// How the TC program hangs on it.
    pub tc: TcAttachment,
    /// How the program for what leaves hangs on it; none where nothing is steered.
    #[serde(default)]
    pub egress: Option<TcAttachment>,
    /// Whether `load` switched the removal of VLAN tags off.
    pub vlan_stripping_off: bool,
    /// Whether XDP on other interfaces may send out of it.
    pub xdp_out: bool,
}

/// A value below `/proc/sys` that `load` changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedSysctl {
    /// Its file.
    pub path: PathBuf,
    /// What it was.
    pub old: String,
}

/// The files of the instance with these pins; commands that change it hold the lock.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
}

/// Held while a command changes an instance.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    state: PathBuf,
    _file: Flock<File>,
}

/// Held by the daemon of an instance. The kernel drops it with the process, however that ends.
#[derive(Debug)]
pub struct DaemonLock {
    _file: File,
}

impl Drop for Lock {
    /// A lock of nothing is not left behind. Whoever waits for it notices that its file is gone.
    fn drop(&mut self) {
        if !self.state.exists() {
            drop(fs::remove_file(&self.path));
        }
    }
}

impl State {
    /// The names of all rules, each of which has counters.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        let masquerades = self.masquerades.iter().map(|masquerade| &masquerade.name);
        let neighbors = self.neighbors.iter().map(|neighbor| &neighbor.name);
        let steers = self.steers.iter().map(|steer| &steer.name);
        self.rules.iter().map(|rule| &rule.name).chain(masquerades).chain(steers).chain(neighbors)
    }

    /// A new instance, loaded now by this program.
    pub fn new(pins: &Path, config: Config) -> Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            format: FORMAT,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            loaded_at: now.as_secs(),
            pins: pins.to_owned(),
            config_path: None,
            config,
            rules: Vec::new(),
            masquerades: Vec::new(),
            steers: Vec::new(),
            uplinks: Vec::new(),
            neighbors: Vec::new(),
            interfaces: Vec::new(),
            counters: BTreeMap::new(),
            sysctls: Vec::new(),
            network_namespace: network_namespace()?,
            mounted_bpffs: false,
            addresses: BTreeSet::new(),
            waiting: Vec::new(),
        })
    }

    /// The interfaces to serve that have not been there yet.
    pub fn absent_interfaces(&self) -> impl Iterator<Item = &str> {
        let known = |slot: u32| self.interfaces.iter().any(|one| one.slot == slot);
        let names = (0..).zip(&self.config.interfaces).filter(move |(slot, _)| !known(*slot));
        names.map(|(_, name)| name.value.as_str())
    }

    /// Whether this process is in the network namespace that the instance works in.
    pub fn is_here(&self) -> Result<bool> {
        Ok(self.network_namespace == network_namespace()?)
    }
}

/// Locks the file, and says so when that takes waiting.
fn wait_for(file: File) -> Result<Flock<File>, Errno> {
    let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => return Ok(file),
        Err((file, Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(errno),
    };
    eprintln!("waiting for another forwarder command to finish");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)
}

/// A write lock on all of a file, of the whole process: the kernel tells others whose it is.
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// The network namespace of this process: the device and inode of its file.
fn network_namespace() -> Result<(u64, u64)> {
    let file = fs::metadata("/proc/self/ns/net").context("cannot look at /proc/self/ns/net; is /proc mounted?")?;
    Ok((file.dev(), file.ino()))
}

impl StateFile {
    /// The state of the instance pinned in `pins`.
    pub fn of(pins: &Path) -> Self {
        Self::in_directory(Path::new(DIRECTORY), pins)
    }

    fn in_directory(directory: &Path, pins: &Path) -> Self {
        Self { path: directory.join(format!("{}.json", name(pins))) }
    }

    /// Another instance in the network namespace of `state`, if there is one.
    pub fn another_here(state: &State) -> Result<Option<(Self, State)>> {
        let own = Self::of(&state.pins);
        let entries = fs::read_dir(DIRECTORY).with_context(|| format!("cannot list {DIRECTORY}"))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path == own.path || path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let file = Self { path };
            // What this version cannot read is no reason to fail.
            let Ok(Some(other)) = file.read() else { continue };
            if other.network_namespace == state.network_namespace && other.pins.exists() {
                return Ok(Some((file, other)));
            }
        }
        Ok(None)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until no other command changes the instance.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path.with_extension("lock");
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        }
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(0o600)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            let file = wait_for(file).with_context(|| format!("cannot lock {}", path.display()))?;
            let links = file.metadata().with_context(|| format!("cannot look at {}", path.display()))?.nlink();
            if links > 0 {
                return Ok(Lock { path, state: self.path.clone(), _file: file });
            }
        }
    }

    /// Makes this process the daemon of the instance, as long as the value lives; the other's process id if there is one.
    pub fn become_daemon(&self) -> Result<Result<DaemonLock, i32>> {
        let path = self.daemon_path();
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .with_context(|| format!("cannot make the directory {}", directory.display()))?;
        }
        let failed = || format!("cannot lock {}", path.display());
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path).with_context(failed)?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
            Ok(_) => Ok(Ok(DaemonLock { _file: file })),
            Err(Errno::EACCES | Errno::EAGAIN) => Ok(Err(self.daemon().unwrap_or(0))),
            Err(errno) => Err(errno).with_context(failed),
        }
    }

    /// The process id of the daemon that follows the machine for this instance; none when nobody does.
    pub fn daemon(&self) -> Option<i32> {
        let file = OpenOptions::new().write(true).open(self.daemon_path()).ok()?;
        let mut lock = whole_file();
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).ok()?;
        (i32::from(lock.l_type) != libc::F_UNLCK).then_some(lock.l_pid)
    }

    /// Has the daemon, if there is one, look at what is loaded: it may have changed.
    pub fn wake_daemon(&self) {
        if let Some(process) = self.daemon() {
            // It has ended meanwhile: nobody is left to look.
            let _ = kill(Pid::from_raw(process), Signal::SIGUSR1);
        }
    }

    /// Never removed while others may be looking at it: an empty file below `/run`.
    fn daemon_path(&self) -> PathBuf {
        self.path.with_extension("daemon")
    }

    /// The state; none when nothing is loaded with these pins.
    pub fn read(&self) -> Result<Option<State>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", self.path.display()));
            }
        };
        let unreadable = || format!("{} is damaged or of another version of forwarder", self.path.display());
        let value: serde_json::Value = serde_json::from_slice(&text).with_context(unreadable)?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        if format != Some(FORMAT.into()) {
            bail!("{}; unload with the version that loaded it, or with `forwarder unload --force`", unreadable());
        }
        Ok(Some(serde_json::from_value(value).with_context(unreadable)?))
    }

    /// Replaces the state as a whole: whoever reads meanwhile sees the old or the new one.
    pub fn write(&self, state: &State) -> Result<()> {
        let text = serde_json::to_vec_pretty(state).context("cannot describe the state as JSON")?;
        write_atomically(&self.path, &text, 0o600)
    }

    /// Removes the state; no error when there is none.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Replaces a file in one step, by a new one beside it with the given permissions.
pub fn write_atomically(path: &Path, contents: &[u8], mode: u32) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut name = path.file_name().with_context(failed)?.to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&new))).with_context(failed)
}

/// A file name for a directory of pins: `/sys/fs/bpf/forwarder` is `forwarder`, others say all of their path.
fn name(pins: &Path) -> String {
    let below = pins.strip_prefix(crate::bpf::bpffs::MOUNT_POINT).unwrap_or(pins);
    let text = below.to_string_lossy();
    // `_` stands for `/`, so it is doubled where it stands for itself: no two directories share a name.
    text.trim_matches('/').replace('_', "__").replace('/', "_")
}

#[cfg(test)]
mod tests;
