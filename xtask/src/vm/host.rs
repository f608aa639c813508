//! The same job under the kernel of this machine, without a virtual one.

use std::{
    io::{self, BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::{
    job::{Job, Step},
    progress::Progress,
    report::Event,
};

/// Runs every step; says whether all of them succeeded.
pub(crate) fn run(job: &Job, progress: &mut Progress) -> Result<bool> {
    let mut passed = true;
    for step in &job.steps {
        progress.event(&Event::Begin(step.name.clone()));
        let status = run_step(job, step, progress).with_context(|| format!("cannot run {}", step.name))?;
        progress.event(&Event::End { step: step.name.clone(), status });
        passed &= status == 0;
    }
    Ok(passed)
}

fn run_step(job: &Job, step: &Step, progress: &mut Progress) -> Result<i32> {
    let (program, arguments) = step.command.split_first().context("it has no command")?;
    // Both streams in one pipe keep their order.
    let (output, writer) = io::pipe().context("cannot make a pipe")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&step.directory);
    for (name, value) in job.environment.iter().chain(&step.environment) {
        command.env(name, value);
    }
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // It holds the writing ends too, and reading would never end.
    drop(command);
    for line in BufReader::new(output).split(b'\n') {
        progress.event(&Event::Output(String::from_utf8_lossy(&line?).into_owned()));
    }
    Ok(child.wait()?.code().unwrap_or(-1))
}
