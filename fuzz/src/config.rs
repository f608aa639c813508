//! Configuration files: those of the tests and examples, torn apart and put together anew.

use std::{fs, path::Path};

use forwarder::config::{Diagnostics, Draft};
use forwarder::machine::Machine;
use forwarder_common::fuzz::Random;

/// The files that others are made of.
pub fn seeds() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seeds = Vec::new();
    for directory in ["examples", "tests/fixtures"] {
        let Ok(entries) = fs::read_dir(root.join(directory)) else { continue };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        seeds.extend(
            paths.iter().filter(|path| path.extension().is_some_and(|ext| ext == "toml")).flat_map(fs::read_to_string),
        );
    }
    let bad = fs::read_to_string(root.join("forwarder/src/config/tests/bad_files.txt")).unwrap_or_default();
    let entries = bad.split("\n=== ").skip(1).filter_map(|entry| entry.split_once('\n')?.1.split_once("---\n"));
    seeds.extend(entries.map(|(text, _)| text.to_owned()));
    seeds
}

/// Bytes as a file, if they are text.
pub fn bytes(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        file(text);
    }
}

/// Reads a file as `forwarder check` does, without a machine and with one.
///
/// # Panics
/// Where a problem is not in the file, or is said in no words; and where reading panics.
pub fn file(text: &str) {
    if let Err(problems) = Draft::read("f.toml", text).into_config() {
        check(text, &problems);
    }
    match Draft::read("f.toml", text).compile(&Machine::default()) {
        Ok((_, compiled)) => check(text, &compiled.warnings),
        Err(problems) => check(text, &problems),
    }
}

/// Every problem has its place in the file, if it has one, and words.
fn check(text: &str, problems: &Diagnostics) {
    let lines: Vec<&str> = text.split('\n').collect();
    for problem in problems.iter() {
        assert!(!problem.what.is_empty(), "no words for {problem:?}");
        let Some(place) = problem.position else { continue };
        // Behind the last character of a line, and behind the last line, something may be missing.
        let line = place.line.checked_sub(1).and_then(|line| lines.get(line as usize));
        let length = line.map_or(0, |line| line.chars().count() + 1);
        assert!(
            line.is_some() && (1..=length).contains(&(place.column as usize)),
            "{problem:?} is not inside of the {} lines of\n{text}",
            lines.len()
        );
    }
}

/// A file made of others: lines of them, some lost, doubled, or changed in a few characters.
pub fn made(random: &mut Random, seeds: &[String]) -> String {
    let mut text = String::new();
    for _ in 0..=random.below(3) {
        let Some(seed) = seeds.get(random.below(seeds.len().max(1) as u64) as usize) else { continue };
        for line in seed.split_inclusive('\n') {
            match random.below(24) {
                0 => {}
                1 => text.extend([line, line]),
                2 | 3 => text.push_str(&changed(random, line)),
                _ => text.push_str(line),
            }
        }
    }
    text
}

/// Characters that mean something in such files, and some that do not.
const CHARACTERS: [char; 24] = [
    '"', '\'', '[', ']', '{', '}', '=', ',', '.', ':', '/', '-', '#', '\n', '\\', '0', '9', '%', 'e', ' ', '\t', 'ö',
    '\u{0}', '😀',
];

fn changed(random: &mut Random, line: &str) -> String {
    let mut characters: Vec<char> = line.chars().collect();
    for _ in 0..=random.below(3) {
        let at = random.below(characters.len() as u64 + 1) as usize;
        let character = CHARACTERS.get(random.below(24) as usize).copied().unwrap_or(' ');
        match random.below(3) {
            0 => characters.insert(at, character),
            1 if at < characters.len() => drop(characters.remove(at)),
            _ => characters.iter_mut().skip(at).take(1).for_each(|old| *old = character),
        }
    }
    characters.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a panic is a failed test")]

    use super::*;

    const RUNS: u64 = 4_000;

    #[test]
    fn every_seed_by_itself() {
        let seeds = seeds();
        assert!(seeds.len() > 80, "only {}", seeds.len());
        for seed in &seeds {
            file(seed);
        }
    }

    #[test]
    fn files_made_of_others() {
        let seeds = seeds();
        for seed in 0..RUNS {
            let text = made(&mut Random::new(seed), &seeds);
            if let Err(why) = std::panic::catch_unwind(|| file(&text)) {
                eprintln!("seed {seed}:\n{text}");
                std::panic::resume_unwind(why);
            }
        }
    }
}
