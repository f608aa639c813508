//! What the guest shall run, written as the bash fragment that `tests/vm/guest.sh` reads.

use std::{
    env,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// Everything one guest runs.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Set for every step; a later entry replaces an earlier one of the same name.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) steps: Vec<Step>,
}

/// One command in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Unique in its job, without white space.
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) command: Vec<String>,
}

impl Step {
    /// A command line for bash.
    pub(crate) fn shell(command: &str, directory: &Path) -> Self {
        Self {
            name: "shell".to_owned(),
            directory: directory.to_owned(),
            environment: Vec::new(),
            command: ["bash", "-c", command].map(str::to_owned).to_vec(),
        }
    }
}

impl Job {
    /// The fragment: sets `VM_NONCE`, says `mark ready`, exports the environment, calls
    /// `step NAME DIRECTORY COMMAND...`.
    pub(crate) fn script(&self, nonce: &str) -> Result<String> {
        let mut script = format!("VM_NONCE={}\nmark ready\n", quoted(nonce)?);
        for (name, value) in &self.environment {
            writeln!(script, "export {name}={}", quoted(value)?)?;
        }
        for step in &self.steps {
            let directory =
                step.directory.to_str().with_context(|| format!("{} is not UTF-8", step.directory.display()))?;
            write!(script, "step {} {}", quoted(&step.name)?, quoted(directory)?)?;
            if !step.environment.is_empty() {
                script.push_str(" env");
            }
            for (name, value) in &step.environment {
                write!(script, " {}", quoted(&format!("{name}={value}"))?)?;
            }
            for word in &step.command {
                write!(script, " {}", quoted(word)?)?;
            }
            script.push('\n');
        }
        Ok(script)
    }
}

/// The guest's environment from `--env NAME=VALUE` and `--env NAME` (the host's value).
pub(crate) fn environment(wanted: &[String]) -> Result<Vec<(String, String)>> {
    wanted
        .iter()
        .map(|entry| {
            let (name, value) = match entry.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (
                    entry.as_str(),
                    env::var(entry)
                        .with_context(|| format!("--env {entry}: no such variable here; say {entry}=VALUE"))?,
                ),
            };
            let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !valid {
                bail!("--env {entry}: {name:?} is not the name of a variable");
            }
            Ok((name.to_owned(), value))
        })
        .collect()
}

fn quoted(word: &str) -> Result<String> {
    shlex::try_quote(word).map(Into::into).with_context(|| format!("{word:?} cannot be given to a shell"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::process::Command;

    use super::*;

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn script_says_the_same_to_bash() {
        let hostile = "it's $HOME; `id` \"x\"\nsecond\\line";
        let job = Job {
            environment: vec![pair("OUTER", hostile)],
            steps: vec![
                Step::shell(hostile, Path::new("/a b")),
                Step {
                    name: "progrun".to_owned(),
                    directory: "/work".into(),
                    environment: vec![pair("INNER", "1 2")],
                    command: vec!["/bin/test".to_owned(), String::new()],
                },
            ],
        };
        let script = format!(
            "mark() {{ :; }}; step() {{ printf '<%s>' \"$@\"; echo; }}\n{}printf '%s|%s' \"$VM_NONCE\" \"$OUTER\"",
            job.script("n0").unwrap()
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("<shell></a b><bash><-c><{hostile}>\n<progrun></work><env><INNER=1 2></bin/test><>\nn0|{hostile}")
        );
    }

    #[test]
    fn environment_from_arguments() {
        let given = ["A=1", "B=x=y", "_C="].map(str::to_owned);
        assert_eq!(environment(&given).unwrap(), [pair("A", "1"), pair("B", "x=y"), pair("_C", "")]);
        let path = environment(&["PATH".to_owned()]).unwrap();
        assert_eq!(path, [pair("PATH", &env::var("PATH").unwrap())]);
        for wrong in ["=1", "1A=1", "A B=1", "A;id=1", "FORWARDER_VM_NO_SUCH_VARIABLE"] {
            assert!(environment(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
