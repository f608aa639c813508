//! `cargo xtask vm`: the test programs under the kernels that users run.
//!
//! Boots Debian's cloud kernels in QEMU with the host's root file system, so that test binaries built here run
//! there unchanged. One boot per kernel, any number of test binaries in it, all kernels at the same time; the host's own
//! last, without QEMU.
//!
//! ```text
//! kernel.rs    Debian package → target/vm/<series>/{vmlinuz, lib/modules}
//! initramfs.rs the few modules that reach the host's root, and tests/vm/init
//! binaries.rs  cargo → test executables
//! subset.rs    which tests, where nobody asks for more
//! job.rs       what the guest shall run, as the bash fragment that tests/vm/guest.sh reads
//! qemu.rs      command lines of QEMU and virtiofsd; cables.rs: the guest's NICs
//! guest.rs     starts both, follows the results port, ends both on every path
//! signals.rs   Ctrl-C and its kin, held back until everything is cleaned up
//! host.rs      runs the same job here
//! report.rs    lines of that port → events; libtest.rs: what a test binary says about its tests
//! ```

mod binaries;
mod cables;
mod guest;
mod host;
mod initramfs;
mod job;
mod kernel;
mod libtest;
mod progress;
mod qemu;
mod report;
mod signals;
mod subset;
mod tools;

use std::{
    path::{self, Path},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use indicatif::MultiProgress;

use self::{
    guest::{Guest, Outcome},
    job::{Job, Step},
    kernel::{Kernel, Series},
    progress::Progress,
    qemu::Accelerator,
    signals::Signals,
    tools::Tools,
};
use crate::workspace;

/// Run the test programs under Debian's cloud kernels in virtual machines, and under this machine's kernel
///
/// Without a target or a filter it is a subset that takes a quarter of an hour; see `--whole`.
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Kernel series to boot; `host` is the running one, without a virtual machine
    #[arg(long, value_enum, default_value_t = KernelChoice::All)]
    kernel: KernelChoice,

    /// Test target to run, all its tests: kernels, netns, progrun, lab (repeatable) [default: a subset of the first three]
    #[arg(long = "test", value_name = "TARGET", conflicts_with = "shell_command")]
    tests: Vec<String>,

    /// All tests of the targets instead of the subset (hours)
    #[arg(long, conflicts_with = "shell_command")]
    whole: bool,

    /// Run this command in the guest instead of the tests, and show its output
    #[arg(long, value_name = "COMMAND", conflicts_with = "test_args")]
    shell_command: Option<String>,

    /// Environment variable for the guest; without a value, the host's (repeatable)
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,

    /// Keep the console and the whole output under target/vm/logs (done anyway when something fails)
    #[arg(long)]
    keep_logs: bool,

    /// Longest time one guest may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    timeout: u64,

    /// Memory of the guest in MiB; what tests write also lives there
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,

    /// Number of virtual CPUs
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    cpus: u32,

    /// How QEMU executes the guest: tcg works everywhere, kvm is quicker where nested virtualisation works
    #[arg(long, value_enum, default_value_t = Accelerator::Tcg)]
    accel: Accelerator,

    /// Passed to every test binary: a filter and other options of libtest
    #[arg(last = true, value_name = "TEST FILTER")]
    test_args: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KernelChoice {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    Host,
    All,
}

impl KernelChoice {
    /// Those to boot.
    fn series(self) -> &'static [Series] {
        const ALL: [Series; 2] = [Series("6.1"), Series("6.12")];
        let [oldest, newest] = &ALL;
        match self {
            Self::V6_1 => std::slice::from_ref(oldest),
            Self::V6_12 => std::slice::from_ref(newest),
            Self::Host => &[],
            Self::All => &ALL,
        }
    }

    fn has_host(self) -> bool {
        matches!(self, Self::Host | Self::All)
    }
}

/// Builds what is to be tested, then boots all kernels at once and runs it there; the host's own kernel comes last.
///
/// Fails when a test fails under any of the kernels, after all of them had their turn.
pub(crate) fn run(args: &VmArgs) -> Result<()> {
    tools::check_host()?;
    let tools = Tools::find()?;
    // Absolute: the guest sees it at the same place.
    let store = path::absolute(workspace::target_dir().join("vm")).context("the target directory has no path")?;

    let given = job::environment(&args.env)?;
    let mut job = if let Some(command) = &args.shell_command {
        if args.kernel == KernelChoice::Host {
            bail!("--shell-command is for a guest; here, run the command itself");
        }
        Job { environment: Vec::new(), steps: vec![Step::shell(command, workspace::root())] }
    } else {
        tests(args)?
    };
    // Last, so that it wins.
    job.environment.extend(given);

    let signals = Signals::hold()?;
    let suite = Suite { job: &job, args, tools: &tools, signals: &signals, store: &store, all: MultiProgress::new() };
    let mut ended: Vec<(_, Result<bool>)> = if args.shell_command.is_some() {
        // What they print is not to be mixed.
        args.kernel.series().iter().map(|&series| (series.0, suite.run_under(series))).collect()
    } else {
        suite.run_guests()
    };
    let all = suite.all;
    let stopped = signals.take()?;
    drop(signals);
    if let Some(signal) = stopped {
        bail!("ended by {signal}");
    }
    // Only now: what is started here would hold signals back as well.
    if args.kernel.has_host() && args.shell_command.is_none() {
        ended.push(("host", host::run(&job, &mut Progress::new(&all, "host", false))));
    }
    let mut failed = Vec::new();
    for (kernel, passed) in ended {
        if !passed? {
            failed.push(kernel);
        }
    }
    if !failed.is_empty() {
        bail!("failed under kernel {}", failed.join(" and "));
    }
    Ok(())
}

/// The test programs and what each of them is to run.
fn tests(args: &VmArgs) -> Result<Job> {
    let named = !args.tests.is_empty();
    let targets: Vec<String> = if named {
        args.tests.clone()
    } else {
        subset::TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect()
    };
    let whole = named || args.whole || !args.test_args.is_empty();
    let chosen = |target: &str| if whole { &[] } else { subset::of(target) };
    let job = binaries::build(&targets)?.job(|target| {
        let filters = chosen(target);
        let exact = (!filters.is_empty()).then_some("--exact");
        let words = filters.iter().copied().chain(exact).map(str::to_owned);
        words.chain(args.test_args.iter().cloned()).collect()
    });
    for step in &job.steps {
        binaries::check_names(step, chosen(&step.name))?;
    }
    Ok(job)
}

/// What every run shares.
struct Suite<'a> {
    job: &'a Job,
    args: &'a VmArgs,
    tools: &'a Tools,
    signals: &'a Signals,
    store: &'a Path,
    all: MultiProgress,
}

impl Suite<'_> {
    /// All guests at once; whether each passed.
    fn run_guests(&self) -> Vec<(&'static str, Result<bool>)> {
        thread::scope(|scope| {
            let guests: Vec<_> = (self.args.kernel.series().iter())
                .map(|&series| (series.0, scope.spawn(move || self.run_under(series))))
                .collect();
            let join = |guest: thread::ScopedJoinHandle<'_, _>| {
                guest.join().unwrap_or_else(|_| Err(anyhow!("the thread that watched the guest panicked")))
            };
            guests.into_iter().map(|(kernel, guest)| (kernel, join(guest))).collect()
        })
    }

    /// Boots one kernel and runs the job; says whether every step succeeded.
    fn run_under(&self, series: Series) -> Result<bool> {
        let Self { args, tools, store, .. } = *self;
        let verbatim = args.shell_command.is_some();
        let mut progress = Progress::new(&self.all, series.0, verbatim);
        progress.phase("preparing the kernel");
        let kernel = Kernel::prepare(series, store, tools)?;
        progress.phase(&format!("booting {}", kernel.release));

        let mut job = self.job.clone();
        // Which tests may then not leave anything out.
        job.environment.insert(0, ("FORWARDER_GUEST".to_owned(), series.0.to_owned()));
        job.environment.insert(0, ("FORWARDER_GUEST_CABLES".to_owned(), cables::described()));

        let guest = Guest {
            kernel: &kernel,
            job: &job,
            tools,
            scripts: &workspace::root().join("tests/vm"),
            memory_mib: args.memory,
            cpus: args.cpus,
            accelerator: args.accel,
            signals: self.signals,
            limit: Duration::from_secs(args.timeout),
        };
        let (outcome, files) =
            guest.run(&mut progress).with_context(|| format!("cannot run a guest with kernel {}", kernel.release))?;
        if args.keep_logs || outcome != Outcome::Passed {
            let logs = store.join("logs").join(series.0);
            files.keep(&logs)?;
            progress.line(&format!("logs are in {}", logs.display()));
        }
        if let Outcome::Lost(reason) = &outcome {
            progress.line(reason);
        }
        Ok(outcome == Outcome::Passed)
    }
}
