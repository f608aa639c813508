//! What the demo prints.

use std::process::Command;

use anyhow::{Context, Result, bail};

const INDENT: &str = "   ";

/// Begins a step.
pub(super) fn step(number: u8, title: &str) {
    println!("\n{number}. {title}");
}

/// Prints text as part of the current step.
pub(super) fn text(text: &str) {
    for line in text.trim_end().lines() {
        println!("{}", format!("{INDENT}{line}").trim_end());
    }
}

/// Shows a command as a person would type it, runs `command`, shows and returns what it printed.
pub(super) fn run(typed: &str, command: &mut Command) -> Result<String> {
    text(&format!("$ {typed}"));
    let printed = quietly(typed, command)?;
    text(&printed);
    Ok(printed)
}

/// Runs `command` and returns what it printed; `typed` is its name in errors.
pub(super) fn quietly(typed: &str, command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {typed:?}: is it installed?"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("`{typed}` failed ({}):\n{}{}", output.status, printed, complaint.trim_end());
    }
    Ok(format!("{complaint}{printed}"))
}
