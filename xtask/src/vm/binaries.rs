//! Builds the test programs on the host and finds where cargo put them.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Artifact, Message};

use super::job::{Job, Step};
use crate::workspace;

/// The package of tests that load programs and run `forwarder`.
const TESTS: &str = "forwarder-tests";
/// The package with the tests of the networks those are run in.
const LAB: &str = "forwarder-lab";
/// How long tests wait for an event, in seconds: everything takes several times longer in an emulated machine.
const PATIENCE: &str = "60";

/// Executables made by cargo.
#[derive(Debug)]
pub(crate) struct Binaries {
    forwarder: Option<PathBuf>,
    tests: Vec<TestBinary>,
}

#[derive(Debug, PartialEq, Eq)]
struct TestBinary {
    /// Name of the test target.
    name: String,
    executable: PathBuf,
    /// Its package's directory, where cargo would run it.
    package: PathBuf,
    runs_forwarder: bool,
}

/// Builds these test targets, and the `forwarder` program for those that run it, showing cargo's own progress.
pub(crate) fn build(tests: &[String]) -> Result<Binaries> {
    let mut arguments = vec!["test", "--no-run", "--package", TESTS, "--package", LAB];
    for test in tests {
        arguments.extend(["--test", test.as_str()]);
    }
    let tests: Vec<_> = cargo(&arguments)?.into_iter().filter_map(test_binary).collect();

    let forwarder = if tests.iter().any(|test| test.runs_forwarder) {
        let built = cargo(&["build", "--package", "forwarder", "--bin", "forwarder"])?;
        let program = built.into_iter().find_map(|artifact| artifact.executable);
        Some(program.context("cargo built no forwarder program")?.into_std_path_buf())
    } else {
        None
    };
    Ok(Binaries { forwarder, tests })
}

impl Binaries {
    /// One step per test binary, with the environment cargo would give it and what the tests ask for. `arguments` says
    /// what each of them is given.
    pub(crate) fn job(&self, arguments: impl Fn(&str) -> Vec<String>) -> Job {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let environment = [("FORWARDER_LAB_PATIENCE", PATIENCE.to_owned())]
            .into_iter()
            .chain(self.forwarder.as_deref().map(|program| ("FORWARDER_BIN", text(program))))
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let steps = self
            .tests
            .iter()
            .map(|test| Step {
                name: test.name.clone(),
                directory: test.package.clone(),
                environment: vec![("CARGO_MANIFEST_DIR".to_owned(), text(&test.package))],
                command: std::iter::once(text(&test.executable)).chain(arguments(&test.name)).collect(),
            })
            .collect();
        Job { environment, steps }
    }
}

/// Fails unless each of these names is that of a test: of a name that is wrong, nothing would be run, and nothing said.
pub(crate) fn check_names(step: &Step, names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let (program, _) = step.command.split_first().context("a step without a command")?;
    let listed = super::tools::output(Path::new(program), ["--list"])?;
    let listed = String::from_utf8_lossy(&listed);
    for name in names {
        if !listed.lines().any(|line| line.strip_suffix(": test") == Some(name)) {
            bail!("{} has no test {name} (see xtask/src/vm/subset.rs)", step.name);
        }
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<Vec<Artifact>> {
    let mut child = workspace::cargo()
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let messages = child.stdout.take().context("cargo has no output")?;
    let artifacts: Result<Vec<_>, _> = Message::parse_stream(BufReader::new(messages))
        .filter_map(|message| match message {
            Ok(Message::CompilerArtifact(artifact)) => Some(Ok(artifact)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
        .collect();
    let status = child.wait()?;
    if !status.success() {
        bail!("cargo {} failed ({status})", arguments.join(" "));
    }
    artifacts.context("cannot read cargo's messages")
}

fn test_binary(artifact: Artifact) -> Option<TestBinary> {
    if !artifact.profile.test {
        return None;
    }
    Some(TestBinary {
        name: artifact.target.name,
        executable: artifact.executable?.into_std_path_buf(),
        // A package id ends in `#NAME@VERSION`, or `/NAME#VERSION` where the directory has that name.
        runs_forwarder: artifact.package_id.repr.contains(TESTS),
        package: artifact.manifest_path.parent()?.as_std_path().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    /// What cargo prints for an artifact, shortened to what matters.
    fn artifact(kind: &str, test: bool, executable: &str) -> Artifact {
        let line = format!(
            r#"{{"package_id":"path+file:///w/tests#forwarder-tests@0.1.0","manifest_path":"/w/tests/Cargo.toml",
            "target":{{"kind":["{kind}"],"crate_types":["bin"],"name":"progrun","src_path":"/w/tests/progrun.rs",
            "edition":"2024","doc":false,"doctest":false,"test":true}},
            "profile":{{"opt_level":"1","debuginfo":2,"debug_assertions":true,"overflow_checks":true,"test":{test}}},
            "features":[],"filenames":[],"executable":{executable},"fresh":true}}"#
        );
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn only_test_executables_count() {
        let expected = TestBinary {
            name: "progrun".to_owned(),
            executable: "/t/progrun-1".into(),
            package: "/w/tests".into(),
            runs_forwarder: true,
        };
        assert_eq!(test_binary(artifact("test", true, r#""/t/progrun-1""#)), Some(expected));
        assert_eq!(test_binary(artifact("lib", false, "null")), None);
        assert_eq!(test_binary(artifact("bin", false, r#""/t/forwarder""#)), None);
    }

    #[test]
    fn steps_take_the_filter_and_the_place() {
        let binaries = Binaries {
            forwarder: Some("/t/forwarder".into()),
            tests: vec![TestBinary {
                name: "progrun".to_owned(),
                executable: "/t/progrun-1".into(),
                package: "/w/tests".into(),
                runs_forwarder: true,
            }],
        };
        let job = binaries.job(|name| ["dnat", "--nocapture", name].map(str::to_owned).to_vec());
        let [step] = job.steps.as_slice() else { unreachable!("one binary is one step") };
        assert_eq!(step.command, ["/t/progrun-1", "dnat", "--nocapture", "progrun"]);
        assert_eq!(step.directory, Path::new("/w/tests"));
        assert!(job.environment.contains(&("FORWARDER_BIN".to_owned(), "/t/forwarder".to_owned())));
    }
}
