//! A lab: unique names, and everything gone at the end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::host::Host;
use crate::link::{self, LinkOptions};
use crate::record::{self, Record};

static LIVING: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static PREPARE: Once = Once::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A set of hosts and links that disappears when dropped.
pub struct Lab {
    id: String,
    record: Record,
    hosts: AtomicU8,
    kept: bool,
}

impl Lab {
    /// Makes an empty lab. `prefix` begins the name of everything in it: short, letters and digits.
    pub fn new(prefix: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("a lab of network namespaces needs root: run it with sudo");
        }
        PREPARE.call_once(|| {
            allow_many_sockets();
            remove_labs_on_signals();
        });
        record::sweep().context("cannot remove the labs of earlier, killed processes")?;
        let id = format!("{prefix}-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let record = living(|labs| {
            labs.insert(id.clone());
            Record::create(&id)
        });
        let record = record.inspect_err(|_| {
            living(|labs| labs.remove(&id));
        })?;
        Ok(Self { id, record, hosts: AtomicU8::new(0), kept: false })
    }

    /// The unique name; the network namespaces of the lab are called `ID-HOST`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Adds a host: a network namespace with its loopback up and every protocol's defaults set, whatever this machine's are.
    pub fn host(&self, name: &str) -> Result<Host> {
        let netns = format!("{}-{name}", self.id);
        // Nothing is made any more once a signal has begun to remove everything.
        living(|_| {
            self.record.namespace(&netns)?;
            Host::create(name, netns, self.hosts.fetch_add(1, Ordering::Relaxed))
        })
    }

    /// Joins two hosts by a veth pair whose ends have the given names, and sets both up.
    pub fn link(&self, a: &Host, a_name: &str, b: &Host, b_name: &str, options: LinkOptions) -> Result<()> {
        link::create((a, a_name), (b, b_name), options)
    }

    /// A path below the BPF filesystem that is this lab's own and is deleted with it.
    pub fn pins(&self, name: &str) -> Result<PathBuf> {
        let path = Path::new("/sys/fs/bpf").join(format!("{}-{name}", self.id));
        self.record.path(&path)?;
        Ok(path)
    }

    /// Has a file or directory deleted together with the lab.
    pub fn delete_at_end(&self, path: &Path) -> Result<()> {
        self.record.path(path)
    }

    /// Leaves the lab standing after this process; returns its id for [`Lab::remove`].
    pub fn keep(mut self) -> Result<String> {
        self.record.keep()?;
        self.kept = true;
        living(|labs| labs.remove(&self.id));
        Ok(self.id.clone())
    }

    /// The labs that were kept.
    pub fn kept() -> Result<Vec<String>> {
        record::kept()
    }

    /// Removes a lab that was kept.
    pub fn remove(id: &str) -> Result<()> {
        record::remove(id)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        living(|labs| labs.remove(&self.id));
        if let Err(error) = record::remove(&self.id) {
            eprintln!("{error:#}");
        }
    }
}

fn living<T>(change: impl FnOnce(&mut BTreeSet<String>) -> T) -> T {
    change(&mut LIVING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A thousand connections are two thousand sockets when both ends live in one process; the usual soft limit is 1024.
fn allow_many_sockets() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // If refused, the test that needs them says so by itself.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn remove_labs_on_signals() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            living(|labs| {
                for id in std::mem::take(labs) {
                    if let Err(error) = record::remove(&id) {
                        eprintln!("{error:#}");
                    }
                }
                // Ends the process the way it would have ended without us, while nobody can make or remove a lab.
                let _ = emulate_default_handler(signal);
            });
        }
    });
}
