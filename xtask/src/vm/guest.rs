//! One guest from start to end: virtiofsd and QEMU are started, followed and ended here.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixListener,
    },
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tempfile::TempDir;

use super::{
    cables, initramfs,
    job::Job,
    kernel::Kernel,
    progress::Progress,
    qemu::{self, Accelerator, Machine},
    report::{Event, Parser},
    signals::Signals,
    tools::Tools,
};

/// How long a guest may take until it has the host's root. It takes about 4 s on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What to run, and how.
#[derive(Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) job: &'a Job,
    pub(crate) tools: &'a Tools,
    /// The directory of `init`, `guest.sh` and `cables.sh`.
    pub(crate) scripts: &'a Path,
    pub(crate) memory_mib: u32,
    pub(crate) cpus: u32,
    pub(crate) accelerator: Accelerator,
    pub(crate) signals: &'a Signals,
    /// Longest time from power-on to the last step's end.
    pub(crate) limit: Duration,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every step ran and exited with 0.
    Passed,
    /// Every step ran, some failed.
    Failed,
    /// The guest ended before its last step, or was ended: the reason, with the console's last lines.
    Lost(String),
}

/// The files of one run, removed with this value.
#[derive(Debug)]
pub(crate) struct RunFiles(TempDir);

impl RunFiles {
    const CONSOLE: &'static str = "console.log";
    const VIRTIOFSD: &'static str = "virtiofsd.log";
    const QEMU: &'static str = "qemu.log";
    /// Everything that came over the results port.
    const OUTPUT: &'static str = "output.log";

    /// Copies the logs to a directory, replacing those of an earlier run.
    pub(crate) fn keep(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        for name in [Self::CONSOLE, Self::VIRTIOFSD, Self::QEMU, Self::OUTPUT] {
            fs::copy(self.0.path().join(name), directory.join(name))
                .with_context(|| format!("cannot keep {name} in {}", directory.display()))?;
        }
        Ok(())
    }

    fn create(&self, name: &str) -> Result<File> {
        File::create(self.0.path().join(name)).with_context(|| format!("cannot create {name}"))
    }

    fn last_lines(&self, name: &str, count: usize) -> String {
        let text = fs::read(self.0.path().join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
    }
}

impl Guest<'_> {
    /// Boots, runs every step, powers off. Whatever happens, nothing started here outlives the call.
    pub(crate) fn run(&self, progress: &mut Progress) -> Result<(Outcome, RunFiles)> {
        let files = RunFiles(
            // The guest's results carry the random part; a test cannot guess it.
            tempfile::Builder::new()
                .prefix("forwarder-vm-")
                .rand_bytes(12)
                .tempdir()
                .context("cannot create a temporary directory")?,
        );
        let directory = files.0.path();
        let nonce = directory
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("forwarder-vm-"))
            .context("the temporary directory has a strange name")?;
        let job = directory.join("job.sh");
        fs::write(&job, self.job.script(nonce)?)?;
        let ramdisk = directory.join("initramfs");
        initramfs::write(&ramdisk, self.kernel, &self.scripts.join("init"), self.tools)?;

        let fs_socket = directory.join("fs.sock");
        let _virtiofsd = self.start_virtiofsd(&fs_socket, &files)?;
        let parameters = [
            ("VM_MODULES", self.kernel.modules.as_path()),
            ("VM_GUEST", &self.scripts.join("guest.sh")),
            ("VM_JOB", &job),
        ];
        let machine = Machine {
            kernel: &self.kernel.image,
            initramfs: &ramdisk,
            parameters: &parameters,
            fs_socket: &fs_socket,
            console: &directory.join(RunFiles::CONSOLE),
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            accelerator: self.accelerator,
        };
        let mut qemu = self.start_qemu(&machine, &files)?;
        let results = qemu.0.stdout.take().context("QEMU has no output")?;
        let outcome = self.follow(results, nonce, self.signals, &files, progress)?;
        Ok((outcome, files))
    }

    fn start_virtiofsd(&self, socket: &Path, files: &RunFiles) -> Result<Running> {
        // Listening already, so that QEMU can connect without waiting for the daemon.
        let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        let log = files.create(RunFiles::VIRTIOFSD)?;
        let mut command = self.bound_to_this_process(&self.tools.virtiofsd);
        command.args(qemu::virtiofsd_arguments()).stdin(OwnedFd::from(listener)).stdout(log.try_clone()?).stderr(log);
        Running::start(command, "virtiofsd")
    }

    fn start_qemu(&self, machine: &Machine<'_>, files: &RunFiles) -> Result<Running> {
        // Left open until QEMU is ended: see Machine::arguments.
        let mut command = self.bound_to_this_process(&self.tools.unshare);
        command
            .arg("--net")
            .arg(self.scripts.join("cables.sh"))
            .args(cables::script_arguments())
            .arg("--")
            .arg(&self.tools.qemu)
            .args(machine.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(files.create(RunFiles::QEMU)?);
        Running::start(command, "qemu-system-x86_64")
    }

    /// A command that the kernel ends when this process does, even by SIGKILL.
    fn bound_to_this_process(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.tools.setpriv);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Reads results until the guest is done, gone, too late, or a signal says stop.
    fn follow(
        &self,
        mut results: ChildStdout,
        nonce: &str,
        signals: &Signals,
        files: &RunFiles,
        progress: &mut Progress,
    ) -> Result<Outcome> {
        let mut copy = files.create(RunFiles::OUTPUT)?;
        let mut parser = Parser::new(nonce);
        let mut tally = Tally::new(self.job.steps.len());
        let started = Instant::now();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let limit = if tally.booted { self.limit } else { self.limit.min(BOOT_LIMIT) };
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                progress.abandon();
                return Ok(Outcome::Lost(format!(
                    "{} after {} s; the console's last lines:\n{}",
                    tally.place(&parser),
                    limit.as_secs(),
                    files.last_lines(RunFiles::CONSOLE, 30)
                )));
            }
            match wait(&results, signals, left)? {
                Wake::Late => {}
                Wake::Stop => bail!("told to stop"),
                Wake::Results => {
                    let count = results.read(&mut buffer).context("cannot read results")?;
                    let bytes = buffer.get(..count).unwrap_or_default();
                    if bytes.is_empty() {
                        progress.abandon();
                        return Ok(Outcome::Lost(format!(
                            "{}, then QEMU ended; the console's last lines:\n{}\n{}{}",
                            tally.place(&parser),
                            files.last_lines(RunFiles::CONSOLE, 60),
                            files.last_lines(RunFiles::QEMU, 10),
                            files.last_lines(RunFiles::VIRTIOFSD, 3),
                        )));
                    }
                    copy.write_all(bytes).context("cannot write output.log")?;
                    for event in parser.take(bytes) {
                        progress.event(&event);
                        if let Some(outcome) = tally.count(event) {
                            return Ok(outcome);
                        }
                    }
                    progress.unfinished(&parser.unfinished());
                }
            }
        }
    }
}

/// What the guest has said so far.
#[derive(Debug)]
struct Tally {
    steps: usize,
    booted: bool,
    current: Option<String>,
    ended: usize,
    failed: usize,
}

impl Tally {
    fn new(steps: usize) -> Self {
        Self { steps, booted: false, current: None, ended: 0, failed: 0 }
    }

    /// Counts one event; the outcome when it was the last.
    fn count(&mut self, event: Event) -> Option<Outcome> {
        match event {
            Event::Ready => self.booted = true,
            Event::Begin(step) => self.current = Some(step),
            Event::Output(_) => {}
            Event::End { status, .. } => {
                self.current = None;
                self.ended += 1;
                self.failed += usize::from(status != 0);
            }
            Event::Done if self.ended != self.steps => {
                return Some(Outcome::Lost(format!("only {} of {} steps ran", self.ended, self.steps)));
            }
            Event::Done if self.failed > 0 => return Some(Outcome::Failed),
            Event::Done => return Some(Outcome::Passed),
        }
        None
    }

    /// Where the guest was, for an error.
    fn place(&self, parser: &Parser) -> String {
        match &self.current {
            None if !self.booted => "it was still booting".to_owned(),
            None => "it was between two steps".to_owned(),
            Some(step) => match parser.unfinished() {
                line if line.is_empty() => format!("it was running {step}"),
                line => format!("it was running {step}, at {:?}", line.trim_end()),
            },
        }
    }
}

/// A child process, killed with this value.
#[derive(Debug)]
struct Running(Child);

impl Running {
    fn start(mut command: Command, name: &str) -> Result<Self> {
        command.spawn().map(Self).with_context(|| format!("cannot start {name}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when the process has ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

enum Wake {
    Results,
    Stop,
    Late,
}

fn wait(results: &ChildStdout, signals: &Signals, longest: Duration) -> Result<Wake> {
    let mut files = [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(results.as_fd(), PollFlags::POLLIN)];
    let longest = PollTimeout::try_from(longest).unwrap_or(PollTimeout::MAX);
    poll(&mut files, longest).context("cannot wait for the guest")?;
    let [stop, data] = files.map(|file| file.any().unwrap_or(false));
    // The signal stays, for the other guests.
    if stop {
        return Ok(Wake::Stop);
    }
    Ok(if data { Wake::Results } else { Wake::Late })
}

#[cfg(test)]
mod tests;
