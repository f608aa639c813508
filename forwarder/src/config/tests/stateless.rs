//! Which rules need no flows, and what is said about the others.

use super::*;

/// For each rule, in order: "" if it is stateless, else why not.
fn reasons(text: &str) -> Vec<String> {
    compiled(text).rules.into_iter().map(|rule| rule.stateless.err().unwrap_or_default()).collect()
}

fn preserve(name: &str, listen: &str, to: &str, more: &[(&str, &str)]) -> String {
    let (name, listen, to) = (format!("\"{name}\""), format!("\"{listen}\""), format!("\"{to}\""));
    let mut lines: Vec<(&str, &str)> =
        vec![("name", &name), ("listen", &listen), ("to", &to), ("source", "\"preserve\"")];
    lines.extend(more);
    rule(&lines)
}

#[test]
fn a_rule_by_itself() {
    let table: [(&[(&str, &str)], &str); 5] = [
        (&[], "masquerade keeps a flow per connection"),
        (&[("source", "\"203.0.113.8\"")], "a source address of ours keeps a flow per connection"),
        (&[("source", "\"preserve\"")], ""),
        (&[("source", "\"preserve\""), ("stateless", "true")], ""),
        (&[("source", "\"preserve\""), ("stateless", "false")], "the rule says `stateless = false`"),
    ];
    for (lines, expected) in table {
        assert_eq!(reasons(&rule(lines)), [expected], "{lines:?}");
    }
}

/// Two rules that preserve the client's address: what they listen on and lead to, and whether replies are ambiguous.
#[test]
fn two_rules() {
    let (tcp, udp): (&[(&str, &str)], &[(&str, &str)]) = (&[("protocol", "\"tcp\"")], &[("protocol", "\"udp\"")]);
    let shared = |what: &str, a: &str, b: &str| {
        let why = |one: &str, other: &str, name: &str| {
            format!("two listens lead to {what}, so replies are ambiguous: {one} and {other} of rule \"{name}\"")
        };
        vec![why(a, b, "b"), why(b, a, "a")]
    };
    let fine = vec![String::new(), String::new()];
    let table = [
        (
            "other backends",
            ("203.0.113.7:80", "10.8.0.2", &[][..]),
            ("203.0.113.8:80", "10.8.0.3", &[][..]),
            fine.clone(),
        ),
        ("other ports", ("203.0.113.7:80", "10.8.0.2", &[]), ("203.0.113.8:81", "10.8.0.2", &[]), fine.clone()),
        ("other protocols", ("203.0.113.7:80", "10.8.0.2", tcp), ("203.0.113.8:80", "10.8.0.2", udp), fine.clone()),
        (
            "one endpoint",
            ("203.0.113.7:80", "10.8.0.2:8080", &[]),
            ("203.0.113.8:8080", "10.8.0.2", tcp),
            shared("10.8.0.2:8080", "203.0.113.7:80", "203.0.113.8:8080"),
        ),
        (
            "a port inside a range",
            ("203.0.113.7:80-90", "10.8.0.2", &[]),
            ("203.0.113.8:8080", "10.8.0.2:85", &[]),
            shared("10.8.0.2:85", "203.0.113.7:80-90", "203.0.113.8:8080"),
        ),
        (
            "overlapping ranges",
            ("203.0.113.7:80-90", "10.8.0.2", &[]),
            ("203.0.113.8:1085-1095", "10.8.0.2:85-95", &[]),
            shared("10.8.0.2:85-90", "203.0.113.7:80-90", "203.0.113.8:1085-1095"),
        ),
        (
            "adjacent ranges",
            ("203.0.113.7:80-89", "10.8.0.2", &[]),
            ("203.0.113.8:90-99", "10.8.0.2", &[]),
            fine.clone(),
        ),
        (
            "a port of a whole address",
            ("198.51.100.1", "10.8.0.2", &[]),
            ("203.0.113.8:80", "10.8.0.2", tcp),
            shared("10.8.0.2:80", "198.51.100.1", "203.0.113.8:80"),
        ),
        (
            "a port of a whole protocol",
            ("198.51.100.1", "10.8.0.2", tcp),
            ("203.0.113.8:80", "10.8.0.2", &[]),
            shared("10.8.0.2:80", "198.51.100.1", "203.0.113.8:80"),
        ),
        ("a whole other protocol", ("198.51.100.1", "10.8.0.2", udp), ("203.0.113.8:80", "10.8.0.2", tcp), fine),
        (
            "two whole addresses",
            ("198.51.100.1", "10.8.0.2", &[]),
            ("198.51.100.2", "10.8.0.2", &[]),
            shared("10.8.0.2", "198.51.100.1", "198.51.100.2"),
        ),
    ];
    for (about, a, b, expected) in table {
        let text = preserve("a", a.0, a.1, a.2) + &preserve("b", b.0, b.1, b.2);
        assert_eq!(reasons(&text), expected, "{about}");
    }
}

#[test]
fn a_masquerading_rule_onto_the_same_backend_makes_replies_ambiguous_too() {
    let text = preserve("a", "203.0.113.7:80", "10.8.0.2", &[])
        + &rule(&[("name", "\"b\""), ("listen", "\"203.0.113.8:80\""), ("to", "\"10.8.0.2\"")]);
    assert_eq!(
        reasons(&text),
        [
            "two listens lead to 10.8.0.2:80, so replies are ambiguous: 203.0.113.7:80 and 203.0.113.8:80 of rule \"b\"",
            "masquerade keeps a flow per connection"
        ]
    );
}

#[test]
fn two_listens_of_one_rule() {
    let both = rule(&[("listen", "\"eth0:80\""), ("source", "\"preserve\"")]);
    assert_eq!(
        reasons(&both),
        ["two listens lead to 10.8.0.2:8080, so replies are ambiguous: 203.0.113.7:80 and 203.0.113.8:80"]
    );
    let kept = rule(&[
        ("listen", "[\"203.0.113.7:80\", \"203.0.113.7:443\"]"),
        ("to", "\"10.8.0.2\""),
        ("source", "\"preserve\""),
    ]);
    assert_eq!(reasons(&kept), [""]);
}

#[test]
fn a_range_between_two_that_it_overlaps_not() {
    // Found by neither of two neighbours alone: the long range reaches over the short one before it.
    let text = preserve("long", "203.0.113.7:1-100", "10.8.0.2", &[])
        + &preserve("short", "203.0.113.8:2-3", "10.8.0.2", &[])
        + &preserve("far", "198.51.100.1:50-60", "10.8.0.2", &[])
        + &preserve("free", "198.51.100.1:101-110", "10.8.0.2", &[]);
    let ambiguous: Vec<bool> = reasons(&text).iter().map(|why| !why.is_empty()).collect();
    assert_eq!(ambiguous, [true, true, true, false]);
}
