//! What is unsafe, and what can fail, is all in the documents that say why and what then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::{names, quoted, root, sources};

/// A file's lines without what is commented.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The Rust files below a directory, by their paths from the root.
fn files(below: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in fs::read_dir(below).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
    }
    found
}

/// Every Rust file of the project, with its code.
fn project() -> BTreeMap<String, String> {
    let directories = ["forwarder", "forwarder-common", "forwarder-ebpf", "fuzz", "tests", "xtask"];
    let paths = directories.iter().flat_map(|directory| files(&root().join(directory)));
    // This file has the word in quotes.
    let paths = paths.filter(|path| path != "tests/docs/surface.rs");
    paths.map(|path| (path.clone(), code(&root().join(&path)))).collect()
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|character: char| character != '_' && !character.is_alphanumeric())
}

/// The kernel's helpers that a file imports: all that it can call.
fn helpers(code: &str) -> BTreeSet<&str> {
    let imports = code.split("helpers::").skip(1).map(|rest| rest.split(';').next().unwrap_or_default());
    imports.flat_map(words).filter(|word| word.starts_with("bpf_")).collect()
}

/// The rows of the tables of docs/unsafe.md, by file.
fn unsafe_rows() -> BTreeMap<String, String> {
    let text = fs::read_to_string(root().join("docs/unsafe.md")).unwrap();
    let mut rows = BTreeMap::<String, String>::new();
    let mut directory = "";
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            directory = match heading.split(':').next().unwrap() {
                "forwarder-ebpf" => "forwarder-ebpf/src/",
                "forwarder" => "forwarder/src/",
                _ => "",
            };
        }
        let Some((paths, row)) = line.strip_prefix("| `").and_then(|row| row.split_once(" | ")) else { continue };
        for path in paths.split('`').filter(|path| Path::new(path).extension().is_some_and(|kind| kind == "rs")) {
            rows.entry(format!("{directory}{path}")).or_default().push_str(row);
        }
    }
    rows
}

#[test]
fn every_unsafe_place_has_its_reason() {
    let (project, rows) = (project(), unsafe_rows());
    let with_unsafe: BTreeSet<&String> =
        project.iter().filter(|(_, code)| words(code).any(|word| word == "unsafe")).map(|(path, _)| path).collect();
    assert!(with_unsafe.len() > 25, "only {with_unsafe:?}");
    let listed: BTreeSet<&String> = rows.keys().collect();
    assert_eq!(with_unsafe, listed, "files with unsafe code, and those in docs/unsafe.md");
    for path in with_unsafe {
        for helper in helpers(&project[path]) {
            let word = format!("`{helper}`");
            assert!(rows[path].contains(&word), "{path} calls {helper}: no row of docs/unsafe.md says why it may");
        }
    }
}

#[test]
fn every_helper_that_can_fail_has_its_row() {
    let text = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let project = project();
    let called: BTreeSet<&str> = project
        .iter()
        .filter(|(path, _)| path.starts_with("forwarder-ebpf"))
        .flat_map(|(_, code)| helpers(code))
        .collect();
    assert!(called.len() > 20, "only {called:?}");
    let missing: Vec<_> = called.iter().filter(|helper| !text.contains(&format!("`{helper}`"))).collect();
    assert!(missing.is_empty(), "docs/faults.md does not name {missing:?}");
}

#[test]
fn every_test_that_shows_a_fault_exists() {
    let text = fs::read_to_string(root().join("docs/faults.md")).unwrap();
    let core = sources(&root().join("forwarder-common/src"));
    let mut found = 0;
    for row in text.lines().filter(|line| line.starts_with('|')) {
        let Some(seen_in) = row.trim_end_matches('|').rsplit('|').next() else { continue };
        // "progrun `a::b`, `c::d`; core `e`".
        for part in seen_in.split(';') {
            let program = words(part.trim()).next().unwrap_or_default();
            let source = match program {
                "progrun" | "netns" | "kernels" => &sources(&root().join("tests").join(program)),
                "core" => &core,
                _ => continue,
            };
            for path in quoted(part) {
                for name in path.split("::").filter(|name| !name.is_empty()) {
                    let exists =
                        names(source, name) || root().join("tests").join(program).join(format!("{name}.rs")).exists();
                    assert!(exists, "docs/faults.md names {program} `{path}`, which does not exist");
                }
                found += 1;
            }
        }
    }
    assert!(found > 20, "only {found} tests were found in docs/faults.md");
}
