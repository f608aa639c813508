//! What the documentation names exists.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod surface;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every Rust file below a directory, one after the other.
fn sources(below: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(below).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(path).unwrap();
        }
    }
    text
}

/// Whether there is a function, a module or a test made by a macro of this name.
fn names(source: &str, name: &str) -> bool {
    let declared = ["fn ", "mod "].iter().any(|keyword| {
        source.match_indices(&format!("{keyword}{name}")).any(|(at, found)| {
            !source[at + found.len()..].starts_with(|next: char| next == '_' || next.is_alphanumeric())
        })
    });
    declared || source.contains(&format!("    {name}: ")) || source.contains(&format!("    {name}(setting"))
}

/// What stands between backticks.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_test_that_shows_a_requirement_exists() {
    let text = fs::read_to_string(root().join("docs/rfc-compliance.md")).unwrap();
    let programs =
        ["netns", "oracle", "progrun"].map(|program| (program, sources(&root().join("tests").join(program))));
    let units = sources(&root().join("forwarder-common/src")) + &sources(&root().join("forwarder/src"));
    let everything = programs.iter().fold(units, |all, (_, source)| all + source);
    let mut found = 0;
    for quoted in quoted(&text) {
        let (source, path) = match quoted.split_once(' ') {
            Some((program, path)) => match programs.iter().find(|(name, _)| *name == program) {
                Some((_, source)) => (source, path),
                None => continue,
            },
            // The names of tests are sentences. Those of outcomes are too, but no test drops.
            None if quoted.matches('_').count() >= 2 && !quoted.contains(['.', '/', '…']) => (&everything, quoted),
            None => continue,
        };
        if path.starts_with("drop_") {
            continue;
        }
        for name in path.split("::").filter(|name| !name.is_empty()) {
            assert!(names(source, name), "docs/rfc-compliance.md names `{quoted}`, which does not exist");
        }
        found += 1;
    }
    assert!(found > 50, "only {found} tests were found in docs/rfc-compliance.md");
}

#[test]
fn every_difference_is_explained() {
    let text = fs::read_to_string(root().join("docs/netfilter-differences.md")).unwrap();
    let documented: BTreeSet<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with("| "))
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .collect();
    let code = fs::read_to_string(root().join("tests/oracle/differences.rs")).unwrap();
    let (_, code) = code.split_once("const EXPLANATIONS").unwrap();
    let (table, _) = code.split_once("];").unwrap();
    let named: BTreeSet<&str> =
        table.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next()).collect();
    assert!(named.len() > 15, "{named:?}");
    assert_eq!(documented, named);
}
