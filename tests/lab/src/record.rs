//! What a lab has made, written down before it is made, so that whoever comes later can remove it.
//!
//! One file per lab below [`DIR`]. Its owner holds a lock on it, which the kernel lets go when the owner dies, however
//! that happens: a record that can be locked belongs to nobody, unless it says `keep`.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DIR: &str = "/run/forwarder-lab";
const KEEP: &str = "keep";

/// The record of a living lab, locked.
pub(crate) struct Record {
    path: PathBuf,
    file: Flock<File>,
}

impl Record {
    /// Starts the record of lab `id`.
    pub(crate) fn create(id: &str) -> Result<Self> {
        fs::create_dir_all(DIR).with_context(|| format!("cannot create {DIR}"))?;
        // A sweep between creation and lock would take the new record for an abandoned one.
        let _guard = directory_lock()?;
        let path = path_of(id);
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("cannot create the lab's record {}", path.display()))?;
        let file =
            lock(file, FlockArg::LockExclusiveNonblock).with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Writes down a namespace that is about to be made.
    pub(crate) fn namespace(&self, name: &str) -> Result<()> {
        self.line(&format!("netns {name}"))
    }

    /// Writes down a file or directory to be deleted with the lab.
    pub(crate) fn path(&self, path: &Path) -> Result<()> {
        self.line(&format!("path {}", path.display()))
    }

    /// From now on the lab outlives its process; only [`remove`] ends it.
    pub(crate) fn keep(&self) -> Result<()> {
        self.line(KEEP)
    }

    fn line(&self, text: &str) -> Result<()> {
        (&*self.file)
            .write_all(format!("{text}\n").as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Removes everything lab `id` has written down, and its record. What cannot be removed is reported, the rest goes anyway.
pub(crate) fn remove(id: &str) -> Result<()> {
    let path = path_of(id);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no lab {id:?} (no {})", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut problems = Vec::new();
    for line in text.lines() {
        let outcome = match line.split_once(' ') {
            Some(("netns", name)) => remove_namespace(name),
            Some(("path", path)) => remove_path(Path::new(path)),
            _ => Ok(()),
        };
        problems.extend(outcome.err().map(|error| format!("{error:#}")));
    }
    if problems.is_empty() {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    } else {
        bail!("lab {id} is not removed completely: {}", problems.join("; "))
    }
}

/// Removes the labs of processes that died without doing so. Another process' record that cannot be read is its own affair.
pub(crate) fn sweep() -> Result<()> {
    let _guard = directory_lock()?;
    for id in ids()? {
        let Ok(mut file) = OpenOptions::new().read(true).append(true).open(path_of(&id)) else {
            continue;
        };
        let mut text = String::new();
        if file.read_to_string(&mut text).is_err() || text.lines().any(|line| line == KEEP) {
            continue;
        }
        if let Ok(_abandoned) = lock(file, FlockArg::LockExclusiveNonblock) {
            remove(&id)?;
        }
    }
    Ok(())
}

/// The ids of labs that were kept on purpose.
pub(crate) fn kept() -> Result<Vec<String>> {
    let is_kept = |id: &String| fs::read_to_string(path_of(id)).is_ok_and(|text| text.lines().any(|line| line == KEEP));
    Ok(ids()?.into_iter().filter(is_kept).collect())
}

fn ids() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {DIR}")),
    };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    ids.sort();
    Ok(ids)
}

fn path_of(id: &str) -> PathBuf {
    Path::new(DIR).join(id)
}

fn directory_lock() -> Result<Flock<File>> {
    fs::create_dir_all(DIR).with_context(|| format!("cannot create {DIR}"))?;
    let path = Path::new(DIR).join(".lock");
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path)
        .with_context(|| format!("cannot open {} (labs need root)", path.display()))?;
    lock(file, FlockArg::LockExclusive).with_context(|| format!("cannot lock {}", path.display()))
}

fn lock(file: File, how: FlockArg) -> Result<Flock<File>, Errno> {
    Flock::lock(file, how).map_err(|(_, errno)| errno)
}

fn remove_namespace(name: &str) -> Result<()> {
    if !Path::new("/run/netns").join(name).exists() {
        return Ok(());
    }
    // A process left inside (a daemon that a test started) would keep the namespace alive, nameless.
    let inside = Command::new("ip").args(["netns", "pids", name]).output().context("cannot run ip")?;
    let own = Pid::this();
    for pid in String::from_utf8_lossy(&inside.stdout).lines().filter_map(|line| line.trim().parse().ok()) {
        if Pid::from_raw(pid) != own {
            // It may have ended by itself in the meantime.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let deleted = Command::new("ip").args(["netns", "del", name]).output().context("cannot run ip")?;
    if !deleted.status.success() {
        bail!("cannot delete namespace {name}: {}", String::from_utf8_lossy(&deleted.stderr).trim());
    }
    Ok(())
}

fn remove_path(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
