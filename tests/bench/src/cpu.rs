//! The one CPU, and the time it spends on packets.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The CPU this process is bound to.
pub(crate) struct Cpu {
    number: usize,
    /// What the scheduler says about the kernel thread that handles packets which nobody had time for at once.
    ksoftirqd: Option<PathBuf>,
}

/// Binds this process, and all that it starts, to one CPU.
pub(crate) fn pin(wanted: Option<usize>) -> Result<Cpu> {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me).context("cannot ask which CPUs may be used")?;
    let usable = |number: &usize| allowed.is_set(*number).unwrap_or(false);
    let number = match wanted {
        Some(number) if !usable(&number) => bail!("CPU {number} does not exist or may not be used"),
        Some(number) => number,
        None => (0..CpuSet::count()).rev().find(usable).context("there is no CPU to use")?,
    };
    let mut one = CpuSet::new();
    one.set(number)?;
    sched_setaffinity(me, &one).with_context(|| format!("cannot bind this process to CPU {number}"))?;
    Ok(Cpu { number, ksoftirqd: ksoftirqd(number) })
}

impl Cpu {
    pub(crate) const fn number(&self) -> usize {
        self.number
    }

    /// CPU time that this thread and the kernel's packet thread have had so far.
    ///
    /// Packets are handled at the end of each batch, on the generating thread's time; what is too much goes to the
    /// kernel's thread. Together they are what packets cost, whoever else wanted the CPU meanwhile.
    pub(crate) fn time(&self) -> Result<Duration> {
        let own = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("cannot read the thread's clock")?;
        let kernel = self.ksoftirqd.as_deref().and_then(scheduled);
        Ok(Duration::from(own) + kernel.unwrap_or_default())
    }
}

/// CPU time that the kernel's packet threads of all CPUs have had so far.
pub(crate) fn packet_threads_time() -> Duration {
    static PATHS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    let paths = PATHS.get_or_init(|| (0..CpuSet::count()).map_while(ksoftirqd).collect());
    paths.iter().filter_map(|path| scheduled(path)).sum()
}

/// What `schedstat` says first: nanoseconds on a CPU.
fn scheduled(path: &Path) -> Option<Duration> {
    let text = fs::read_to_string(path).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn ksoftirqd(number: usize) -> Option<PathBuf> {
    let wanted = format!("ksoftirqd/{number}\n");
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let mut found =
        processes.filter(|process| fs::read_to_string(process.join("comm")).is_ok_and(|name| name == wanted));
    Some(found.next()?.join("schedstat"))
}
