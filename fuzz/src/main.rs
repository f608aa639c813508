//! Writes the inputs that a target's corpus begins with: `forwarder-fuzz TARGET DIRECTORY`.

use std::{env, fs, io, path::Path, process::ExitCode};

use forwarder_common::fuzz::Random;
use forwarder_fuzz::config;

/// How many inputs of random bytes; libFuzzer keeps those that reach something new.
const RANDOM: usize = 512;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [target, directory] = arguments.as_slice() else {
        eprintln!("usage: forwarder-fuzz TARGET DIRECTORY");
        return ExitCode::FAILURE;
    };
    match write(target, Path::new(directory)) {
        Ok(written) => println!("{written} inputs in {directory}"),
        Err(error) => {
            eprintln!("error: cannot write to {directory}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn write(target: &str, directory: &Path) -> io::Result<usize> {
    let inputs: Vec<Vec<u8>> = if target == "config" {
        config::seeds().into_iter().map(String::into_bytes).collect()
    } else {
        let mut random = Random::new(1);
        (0..RANDOM).map(|_| random.bytes()).collect()
    };
    fs::create_dir_all(directory)?;
    for (number, input) in inputs.iter().enumerate() {
        fs::write(directory.join(format!("seed-{number:03}")), input)?;
    }
    Ok(inputs.len())
}
