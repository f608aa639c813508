//! Everything that can be wrong with a file, with the exact words for it: `bad_files.txt`.

use super::*;

const TABLE: &str = include_str!("bad_files.txt");

/// What is said about a text.
fn said(text: &str) -> String {
    match read(text) {
        Ok((_, compiled)) => compiled.warnings.to_string(),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn every_problem_is_named_with_its_place_and_what_to_try() {
    let entries: Vec<&str> = TABLE.split("\n=== ").skip(1).collect();
    assert!(entries.len() > 60);
    for entry in entries {
        let (about, rest) = entry.split_once('\n').unwrap();
        let (text, expected) = rest.split_once("---\n").unwrap();
        assert_eq!(said(text), expected.trim_end(), "{about}:\n{text}");
    }
}

#[test]
fn a_problem_of_each_kind_in_one_file_is_reported_in_one_go() {
    let text = [
        rule(&[]),
        rule(&[("listen", "\"203.0.113.7:80-89\""), ("source", "\"203.0.113.99\"")]),
        rule(&[("name", "\"c\""), ("listen", "\"[2001:db8::7]:80\"")]),
        rule(&[("name", "\"d\""), ("listen", "\"203.0.113.7:80\""), ("to", "\"10.8.0.2:99999\"")]),
        rule(&[("name", "\"e\""), ("lisen", "3"), ("source", "\"presrve\"")]),
    ];
    let problems = read(&text.concat()).unwrap_err();
    let lines: Vec<(u32, u32)> =
        problems.errors().map(|problem| problem.position.map(|place| (place.line, place.column)).unwrap()).collect();
    // Name taken, lengths, source, family, listen taken, port, listen taken, key, source.
    let expected = [(6, 8), (8, 6), (9, 10), (12, 10), (16, 10), (17, 6), (20, 10), (22, 1), (23, 10)];
    let sorted: BTreeSet<_> = lines.iter().copied().collect();
    assert_eq!(sorted, expected.into_iter().collect(), "{problems}");
}

#[test]
fn a_rule_from_the_command_line_has_no_place_but_the_same_words() {
    let (config, _) = read(&rule(&[])).unwrap();
    let typed = TypedForward {
        name: "web".into(),
        listen: vec!["203.0.113.7:80".into(), "203.0.113.7:99999".into()],
        to: "home:80".into(),
        ..TypedForward::default()
    };
    assert_eq!(
        config.with(&typed).unwrap_err().to_string(),
        "rule \"web\": listen \"203.0.113.7:99999\": port 99999 is out of range\n  \
         try: a port from 1 to 65535\n\
         rule \"web\": to \"home:80\": a host name as backend (`home`): not supported by this version yet\n  \
         try: its address, such as 10.8.0.2:8080\n\
         the name \"web\" is taken by another rule on line 2\n  \
         try: a name of its own: it is the name of its counters\n\
         rule \"web\": listen \"203.0.113.7:80\" (tcp, udp) is taken by listen \"203.0.113.7:80\" of rule \"web\" on line 3\n  \
         try: another port or address for one of the two"
    );
    assert_eq!(config.without("wep").unwrap_err().to_string(), "there is no rule \"wep\"\n  try: \"web\"");
}

#[test]
fn what_needs_no_machine_is_found_without_one() {
    let taken =
        format!("{}{}", rule(&[("listen", "\"eth7:80\"")]), rule(&[("name", "\"b\""), ("listen", "\"eth7:80\"")]));
    assert_eq!(
        load("f.toml", &taken).unwrap_err().to_string(),
        "f.toml:7:10: rule \"b\": listen \"eth7:80\" (tcp, udp) is taken by listen \"eth7:80\" of rule \"web\" on line 3\n  \
         try: another port or address for one of the two"
    );
    load("f.toml", &rule(&[("listen", "\"eth7:80\"")])).unwrap();
}

#[test]
fn columns_count_characters() {
    let problems = load("f.toml", "mode = \"tc\" # größer\nlog = \"ö\"\n").unwrap_err().to_string();
    assert!(problems.starts_with("f.toml:2:7: log \"ö\" does not exist"), "{problems}");
    let problems = load("f.toml", "log = 'ö' = 3").unwrap_err().to_string();
    assert!(problems.starts_with("f.toml:1:11: "), "{problems}");
}
