//! Texts before and after.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use super::*;

const FILE: &str = r#"# Our VPS.
interfaces = ["eth0"]  # the only one

# The web server in the cellar.
[[forward]]
name = "web"   # keep this name: dashboards use it
listen = "203.0.113.7:80"
to = "10.8.0.2:8080"

# ---- games ----

# Asked for by Ada.
[[forward]]
name = "game"
listen = ["203.0.113.7:27015", "203.0.113.8:27015"]
protocol = "udp"
to = "10.8.0.3"
"#;

fn rule() -> TypedForward {
    TypedForward {
        name: "ssh".into(),
        listen: vec!["203.0.113.7:2222".into()],
        protocol: vec!["tcp".into()],
        to: "10.8.0.2:22".into(),
        source: Some("preserve".into()),
        allow: vec!["198.51.100.0/24".into(), "192.0.2.1".into()],
        stateless: None,
    }
}

#[test]
fn an_added_rule_comes_last_and_changes_nothing_before_it() {
    let added = add_forward(FILE, &rule()).unwrap();
    let expected = format!(
        "{FILE}\n[[forward]]\nname = \"ssh\"\nlisten = \"203.0.113.7:2222\"\nprotocol = \"tcp\"\nto = \"10.8.0.2:22\"\n\
         source = \"preserve\"\nallow = [\"198.51.100.0/24\", \"192.0.2.1\"]\n"
    );
    assert_eq!(added, expected);
    assert_eq!(crate::config::load("f", &added).unwrap().forwards.len(), 3);
}

#[test]
fn a_rule_is_added_to_an_empty_file_and_to_one_without_rules() {
    let lone = add_forward("", &TypedForward { protocol: vec![], source: None, allow: vec![], ..rule() }).unwrap();
    assert_eq!(lone, "[[forward]]\nname = \"ssh\"\nlisten = \"203.0.113.7:2222\"\nto = \"10.8.0.2:22\"\n");
    let added = add_forward("mode = \"tc\"\n[limits]\nrules = 100\n", &rule()).unwrap();
    assert!(added.starts_with("mode = \"tc\"\n[limits]\nrules = 100\n\n[[forward]]\nname = \"ssh\"\n"), "{added}");
    crate::config::load("f", &added).unwrap();
}

#[test]
fn adding_and_removing_again_gives_the_same_text() {
    let added = add_forward(FILE, &rule()).unwrap();
    assert_eq!(remove_rule(&added, "ssh").unwrap().as_deref(), Some(FILE));
}

#[test]
fn a_removed_rule_takes_its_own_comment_along_and_no_other() {
    let without_game = remove_rule(FILE, "game").unwrap().unwrap();
    assert!(without_game.contains("---- games ----") && !without_game.contains("Ada"), "{without_game}");
    assert!(without_game.contains("keep this name") && without_game.contains("the only one"));
    let without_web = remove_rule(FILE, "web").unwrap().unwrap();
    assert!(!without_web.contains("cellar") && without_web.contains("Asked for by Ada."), "{without_web}");
    assert_eq!(crate::config::load("f", &without_web).unwrap().forwards[0].name.value, "game");
    let neither = remove_rule(&without_web, "game").unwrap().unwrap();
    assert!(neither.starts_with("# Our VPS.\ninterfaces"), "{neither}");
    assert!(crate::config::load("f", &neither).unwrap().forwards.is_empty());
}

#[test]
fn rules_in_an_inline_list_are_edited_too() {
    let text = "forward = [{ name = \"a\", listen = \"203.0.113.7:1\", to = \"10.8.0.2\" }]\n";
    let added = add_forward(text, &rule()).unwrap();
    assert_eq!(crate::config::load("f", &added).unwrap().forwards.len(), 2);
    assert_eq!(remove_rule(&added, "ssh").unwrap().as_deref(), Some(text));
}

#[test]
fn what_cannot_be_done_says_so() {
    let problem = |result: Result<String, Diagnostics>| result.unwrap_err().to_string();
    let taken = TypedForward { name: "web".into(), ..rule() };
    assert_eq!(problem(add_forward(FILE, &taken)), "the file has a rule \"web\" already\n  try: another name");
    let broken = problem(add_forward("forward = [\n", &rule()));
    assert!(broken.contains("unclosed array"), "{broken}");
    let other = problem(add_forward("forward = 3\n", &rule()));
    assert!(other.starts_with("`forward` in the file is not a list of rules"), "{other}");
    let wrong = TypedForward { to: "10.8.0.2:99999".into(), ..rule() };
    assert_eq!(
        problem(add_forward(FILE, &wrong)),
        "rule \"ssh\": to \"10.8.0.2:99999\": port 99999 is out of range\n  try: a port from 1 to 65535"
    );
    assert_eq!(remove_rule(FILE, "nobody").unwrap(), None);
}

#[test]
fn masquerades_are_removed_too() {
    let masquerade = "\n# ---- outwards ----\n\n# The lab.\n[[masquerade]]\nname = \"lab\"\nfrom = [\"10.8.0.0/24\"]\nout = \"eth0\"\n";
    let text = format!("{FILE}{masquerade}");
    let without = remove_rule(&text, "lab").unwrap().unwrap();
    assert!(without.starts_with(FILE) && without.contains("outwards"), "{without}");
    assert!(!without.contains("masquerade") && !without.contains("The lab"), "{without}");
    let without_web = remove_rule(&text, "web").unwrap().unwrap();
    assert!(without_web.ends_with(masquerade) && !without_web.contains("cellar"), "{without_web}");
    // Their names are of one kind.
    let taken = TypedForward { name: "lab".into(), ..rule() };
    let refused = add_forward(&text, &taken).unwrap_err().to_string();
    assert!(refused.contains("has a rule \"lab\" already"), "{refused}");
}
