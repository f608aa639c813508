//! The files of an instance below `/run/forwarder`: its state, and the locks that keep two commands or two daemons apart.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, Flock, FlockArg, fcntl},
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;

use super::{DIRECTORY, FORMAT, State};

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
        let Versioned { format } = serde_json::from_slice(&text).with_context(unreadable)?;
        if format.as_u64() != Some(FORMAT.into()) {
            bail!("{}; unload with the version that loaded it, or with `forwarder unload --force`", unreadable());
        }
        Ok(Some(serde_json::from_slice(&text).with_context(unreadable)?))
    }

    /// Replaces the state as a whole: whoever reads meanwhile sees the old or the new one.
    pub fn write(&self, state: &State) -> Result<()> {
        write_atomically(&self.path, &text(state)?, 0o600)
    }

    /// As [`Self::write`], unless that is what the file says already.
    pub fn update(&self, state: &State) -> Result<()> {
        let text = text(state)?;
        if fs::read(&self.path).is_ok_and(|old| old == text) {
            return Ok(());
        }
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

/// What the state of every version says of itself. Read before the rest, which is not kept meanwhile: a hundred thousand rules
/// as JSON values would take most of the time of a command.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    format: serde_json::Value,
}

fn text(state: &State) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(state).context("cannot describe the state as JSON")
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

#[cfg(test)]
mod tests;
