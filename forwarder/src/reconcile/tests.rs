//! Plans, carried out on a model of the maps.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail by panicking"
)]
#![allow(clippy::type_complexity, reason = "tables spell their columns out")]
#![allow(clippy::format_collect, reason = "files of a test are short, or made once")]

mod model;
mod properties;

use super::*;
use model::{Maps, compiled};

/// Compiles a file for the model's machine.
fn file(rules: &str) -> Compiled {
    compiled(rules)
}

const WEB: &str = "[[forward]]\nname = \"web\"\nlisten = \"203.0.113.7:80\"\nprotocol = \"tcp\"\nto = \"10.8.0.2\"\n";
const DNS: &str = "[[forward]]\nname = \"dns\"\nlisten = \"203.0.113.7:53\"\nprotocol = \"udp\"\nto = \"10.8.0.3\"\nsource = \"preserve\"\n";

#[test]
fn the_first_load_does_its_writes_in_the_order_that_keeps_packets_whole() {
    let desired = file(&format!("{WEB}allow = [\"198.51.100.0/24\"]\n"));
    let plan = plan(&Maps::new(&desired).running(), &desired).unwrap();
    let mut kinds: Vec<&str> = plan
        .operations
        .iter()
        .map(|operation| match operation {
            Operation::ZeroCounter(_) => "zero counter",
            Operation::V4(TableWrite::Allow(_)) => "allow",
            Operation::V4(TableWrite::Rule(1, _)) => "rule 1",
            // Ranges are the addresses whose fragments wait.
            Operation::V4(TableWrite::Endpoint(_, reference) | TableWrite::Range(_, reference)) => match reference {
                RuleRef { before: 0, after: 1, at: 1 } => "announce",
                RuleRef { before: 1, after: 1, at: 0 } => "settle",
                other => panic!("{other:?}"),
            },
            Operation::Settings { generation: 0, .. } => "flags",
            Operation::Settings { generation: 1, .. } => "switch",
            Operation::AwaitPackets => "await packets",
            other => panic!("{other:?}"),
        })
        .collect();
    kinds.dedup();
    let expected = ["zero counter", "allow", "rule 1", "flags", "announce", "switch", "await packets", "settle"];
    assert_eq!(kinds, expected);
    assert_eq!(plan.changes, Changes { added: vec!["web".into()], ..Changes::default() });
}

#[test]
fn a_reload_of_the_same_file_writes_nothing() {
    let desired = file(&format!("{WEB}{DNS}"));
    let mut maps = Maps::new(&desired);
    maps.reload(&desired);
    let plan = plan(&maps.running(), &desired).unwrap();
    assert_eq!(plan.operations, []);
    assert_eq!(plan.changes.unchanged, ["dns", "web"]);
}

#[test]
fn a_change_of_timeouts_alone_needs_one_write_and_no_switch() {
    let mut maps = Maps::new(&file(WEB));
    maps.reload(&file(WEB));
    let longer = file(&format!("{WEB}[timeouts]\nicmp = \"5m\"\n"));
    let plan = plan(&maps.running(), &longer).unwrap();
    assert_eq!(plan.operations, [Operation::Settings { generation: 1, part: longer.settings }]);
}

#[test]
fn unchanged_rules_keep_their_slot_and_counter_and_freed_ones_are_used_again() {
    let mut maps = Maps::new(&file(WEB));
    maps.reload(&file(&format!("{WEB}{DNS}")));
    let before = maps.running();
    // "web" goes and comes back; "dns" stays what it was.
    let changes = maps.reload(&file(DNS));
    assert_eq!(changes.removed, [("web".into(), before.counters["web"])]);
    assert_eq!(changes.unchanged, ["dns"]);
    let changes = maps.reload(&file(&format!("{DNS}{WEB}")));
    assert_eq!((changes.added, changes.unchanged), (vec!["web".to_owned()], vec!["dns".to_owned()]));
    let after = maps.running();
    assert_eq!(after.counters["dns"], before.counters["dns"]);
    assert_eq!(after.v4.endpoints, before.v4.endpoints, "the same slots again");
}

#[test]
fn a_changed_rule_moves_to_another_slot_and_keeps_its_counter() {
    let mut maps = Maps::new(&file(WEB));
    maps.reload(&file(WEB));
    let before = maps.running();
    let changes = maps.reload(&file(&WEB.replace("10.8.0.2", "10.8.0.9")));
    assert_eq!(changes.changed, ["web"]);
    let after = maps.running();
    assert_eq!(after.counters, before.counters);
    let slot = |running: &Running| running.v4.endpoints.values().next().unwrap().after;
    assert_ne!(slot(&after), slot(&before));
}

#[test]
fn a_range_inside_a_whole_address_does_not_count_as_a_change_of_that_rule() {
    let whole = "[[forward]]\nname = \"all\"\nlisten = \"203.0.113.9\"\nto = \"10.8.0.2\"\n";
    let range = "[[forward]]\nname = \"games\"\nlisten = \"203.0.113.9:7000-7009\"\nto = \"10.8.0.3\"\n";
    let mut maps = Maps::new(&file(whole));
    maps.reload(&file(whole));
    let changes = maps.reload(&file(&format!("{whole}{range}")));
    assert_eq!(changes, Changes { added: vec!["games".into()], unchanged: vec!["all".into()], ..Changes::default() });
    let changes = maps.reload(&file(whole));
    assert_eq!((changes.removed.len(), changes.unchanged.as_slice()), (1, &["all".to_owned()][..]));
}

#[test]
fn the_flows_of_removed_rules_are_still_looked_up() {
    let mut maps = Maps::new(&file(WEB));
    maps.reload(&file(WEB));
    maps.reload(&file(DNS));
    let flags = maps.running().settings.flags;
    assert_eq!(flags, setting_flags::FLOWS | setting_flags::STATELESS | setting_flags::HAIRPIN);
    maps.reload(&file(""));
    assert_eq!(maps.running().settings.flags, setting_flags::FLOWS | setting_flags::HAIRPIN);
    assert!(maps.running().v4.endpoints.is_empty());
}

#[test]
fn rules_that_allow_the_same_clients_share_one_list() {
    let allow = "allow = [\"198.51.100.0/24\", \"192.0.2.1\"]\n";
    let desired = file(&format!("{WEB}{allow}{DNS}{allow}"));
    let mut maps = Maps::new(&desired);
    maps.reload(&desired);
    assert_eq!(maps.running().v4.allow.len(), 2);
}

#[test]
fn what_does_not_fit_changes_nothing_and_names_what_to_set() {
    let mut maps = Maps::new(&file(WEB));
    let rules: String = (1..=60)
        .map(|port| format!("[[forward]]\nname = \"r{port}\"\nlisten = \"203.0.113.7:{port}\"\nto = \"10.8.0.2\"\n"))
        .collect();
    let desired = file(&rules);
    let table: [(fn(&mut Sizes), &str); 3] = [
        (
            |sizes| sizes.rules = 60,
            "the running maps are too small: 60 IPv4 rule slots needed, room for 59\n  \
             try: rules = 32 under [limits], then `forwarder unload` and `forwarder load`",
        ),
        (
            |sizes| sizes.endpoints = 100,
            "the running maps are too small: 120 IPv4 endpoints needed, room for 100\n  \
             try: rules = 16 under [limits], then `forwarder unload` and `forwarder load`",
        ),
        (
            |sizes| sizes.counters = 59,
            "the running maps are too small: 60 rule counters needed, room for 59\n  \
             try: rules = 16 under [limits], then `forwarder unload` and `forwarder load`",
        ),
    ];
    for (shrink, expected) in table {
        let mut running = maps.running();
        shrink(&mut running.sizes);
        assert_eq!(plan(&running, &desired).unwrap_err().to_string(), expected);
    }
    // Sixty rules by sixty others: both have to fit at once.
    maps.reload(&desired);
    let mut running = maps.running();
    running.sizes.rules = 101;
    let others = file(&rules.replace("10.8.0.2", "10.8.0.3"));
    let problem = plan(&running, &others).unwrap_err();
    assert_eq!((problem.needed, problem.available), (120, 100));
    running.sizes.rules = 121;
    plan(&running, &others).unwrap();
}

#[test]
fn without_the_state_file_no_counter_in_use_is_given_away() {
    let mut maps = Maps::new(&file(WEB));
    maps.reload(&file(WEB));
    let used = maps.running().counters["web"];
    maps.set_counters(&BTreeMap::new());
    let plan = plan(&maps.running(), &file(DNS)).unwrap();
    assert_ne!(plan.counters["dns"], used);
}

#[test]
fn a_hundred_thousand_rules_are_reloaded_in_seconds() {
    let rules = |to: &str| -> String {
        (0..100_000)
            .map(|n| {
                let (a, port) = (n / 50_000, 1000 + n % 50_000);
                format!("[[forward]]\nname = \"r{n}\"\nlisten = \"203.0.113.{a}:{port}\"\nto = \"{to}\"\nsource = \"preserve\"\n")
            })
            .collect()
    };
    let start = std::time::Instant::now();
    let before = file(&rules("10.8.0.2"));
    let compiled = start.elapsed();
    let mut maps = Maps::new(&before);
    let started = std::time::Instant::now();
    plan(&maps.running(), &before).unwrap();
    let first = started.elapsed();
    maps.reload(&before);
    let after = file(&rules("10.8.0.3"));
    let running = maps.running();
    let started = std::time::Instant::now();
    let plan = plan(&running, &after).unwrap();
    let second = started.elapsed();
    eprintln!("read and compiled in {compiled:?}, first plan {first:?}, plan that changes all {second:?}");
    assert_eq!(plan.changes.changed.len(), 100_000);
    // Generous: this runs unoptimised, on busy machines.
    assert!(compiled + second < std::time::Duration::from_secs(60));
}
