//! `cargo xtask vm`: the test programs under the kernels that users run.
//!
//! Boots Debian's cloud kernels in QEMU with the host's root file system, so that test binaries built here run
//! there unchanged. One boot per kernel, any number of test binaries in it.
//!
//! ```text
//! kernel.rs    Debian package → target/vm/<series>/{vmlinuz, lib/modules}
//! initramfs.rs the few modules that reach the host's root, and tests/vm/init
//! binaries.rs  cargo → test executables
//! job.rs       what the guest shall run, as the bash fragment that tests/vm/guest.sh reads
//! qemu.rs      command lines of QEMU and virtiofsd
//! guest.rs     starts both, follows the results port, ends both on every path
//! signals.rs   Ctrl-C and its kin, held back until everything is cleaned up
//! report.rs    lines of that port → events; libtest.rs: what a test binary says about its tests
//! ```

mod binaries;
mod guest;
mod initramfs;
mod job;
mod kernel;
mod libtest;
mod progress;
mod qemu;
mod report;
mod signals;
mod tools;

use std::{
    path::{self, Path},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

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

/// Test targets that run when none is named.
const DEFAULT_TESTS: [&str; 1] = ["progrun"];

/// Run the test programs in a virtual machine with Debian's cloud kernels
#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Kernel series to boot
    #[arg(long, value_enum, default_value_t = KernelChoice::All)]
    kernel: KernelChoice,

    /// Test target to run: progrun, netns, lab (repeatable) [default: progrun]
    #[arg(long = "test", value_name = "TARGET", conflicts_with = "shell_command")]
    tests: Vec<String>,

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
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
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
    All,
}

impl KernelChoice {
    fn series(self) -> &'static [Series] {
        const ALL: [Series; 2] = [Series("6.1"), Series("6.12")];
        let [oldest, newest] = &ALL;
        match self {
            Self::V6_1 => std::slice::from_ref(oldest),
            Self::V6_12 => std::slice::from_ref(newest),
            Self::All => &ALL,
        }
    }
}

/// Builds what is to be tested, then boots one kernel after the other and runs it there.
///
/// Fails when a test fails under any of the kernels, after all of them had their turn.
pub(crate) fn run(args: &VmArgs) -> Result<()> {
    tools::check_host()?;
    let tools = Tools::find()?;
    // Absolute: the guest sees it at the same place.
    let store = path::absolute(workspace::target_dir().join("vm")).context("the target directory has no path")?;

    let given = job::environment(&args.env)?;
    let mut job = if let Some(command) = &args.shell_command {
        Job { environment: Vec::new(), steps: vec![Step::shell(command, workspace::root())] }
    } else {
        let tests = if args.tests.is_empty() { DEFAULT_TESTS.map(str::to_owned).to_vec() } else { args.tests.clone() };
        binaries::build(&tests)?.job(&args.test_args)
    };
    // Last, so that it wins.
    job.environment.extend(given);

    let signals = Signals::hold()?;
    let mut failed = Vec::new();
    for &series in args.kernel.series() {
        if !run_under(series, &job, args, &tools, &signals, &store)? {
            failed.push(series.0);
        }
    }
    if !failed.is_empty() {
        bail!("failed under kernel {}", failed.join(" and "));
    }
    Ok(())
}

/// Boots one kernel and runs the job; says whether every step succeeded. An error means that there is no point in trying
/// another kernel.
fn run_under(series: Series, job: &Job, args: &VmArgs, tools: &Tools, signals: &Signals, store: &Path) -> Result<bool> {
    let verbatim = args.shell_command.is_some();
    let mut progress = Progress::new(series, verbatim);
    progress.phase("preparing the kernel");
    let kernel = Kernel::prepare(series, store, tools)?;
    progress.phase(&format!("booting {}", kernel.release));

    let guest = Guest {
        kernel: &kernel,
        job,
        tools,
        scripts: &workspace::root().join("tests/vm"),
        memory_mib: args.memory,
        cpus: args.cpus,
        accelerator: args.accel,
        signals,
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
