//! `[[neighbor]]` and what becomes of it.

use forwarder_common::abi::{RangeKey, Rule, setting_flags};

use super::*;

const FILE: &str =
    "[[neighbor]]\ninterface = \"eth0\"\nvia = \"wg0\"\nfor = [\"2001:db8:0:0:8::/78\", \"203.0.113.99\"]\n";

fn read_on(text: &str, change: impl FnOnce(&mut Machine)) -> Result<(Config, Compiled), Diagnostics> {
    let draft = Draft::read("f.toml", text);
    let mut machine = routed(&draft.backends());
    change(&mut machine);
    draft.compile(&machine)
}

fn said_on(text: &str, change: impl FnOnce(&mut Machine)) -> String {
    match read_on(text, change) {
        Ok((_, compiled)) => compiled.warnings.to_string(),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn questions_find_a_rule_by_interface_and_address() {
    let (_, compiled) =
        read_on(&FILE.replace("wg0", "eth1"), |machine| machine.ways.values_mut().for_each(|way| *way = 4)).unwrap();
    assert_eq!(compiled.warnings.to_string(), "");
    let v4 = |text: &str| <forwarder_common::address::V4 as Family>::of(text.parse().unwrap()).unwrap();
    let v6 = |text: &str| <forwarder_common::address::V6 as Family>::of(text.parse().unwrap()).unwrap();
    // From the link-local address; a packet to those behind from that of the other side.
    let (rule4, rule6) =
        (Rule::neighbor(4, v4("203.0.113.7"), 0, false), Rule::neighbor(4, v6("fe80::1"), v6("fe80::2"), false));
    assert_eq!(compiled.v4.rules.iter().map(|rule| rule.body).collect::<Vec<_>>(), [rule4]);
    assert_eq!(compiled.v6.rules.iter().map(|rule| rule.body).collect::<Vec<_>>(), [rule6]);
    let key4 = RangeKey::neighbor(2, v4("203.0.113.99"));
    let key6 = RangeKey { prefix_len: 32 + 78, ..RangeKey::neighbor(2, v6("2001:db8:0:0:8::")) };
    assert_eq!((key4.prefix_len, key4.side, key6.side), (64, 8 | 2 << 8, 8 | 2 << 8));
    assert_eq!(compiled.v4.ranges, BTreeMap::from([(key4, 0)]));
    assert_eq!(compiled.v6.ranges, BTreeMap::from([(key6, 0)]));
    // Packets look nothing up for it.
    assert_eq!(compiled.settings.flags, setting_flags::NEIGHBOR);
    assert_eq!(compiled.names().map(|name| &**name).collect::<Vec<_>>(), ["neighbor-eth1"]);
}

#[test]
fn a_configuration_without_it_asks_for_nothing() {
    assert_eq!(compiled(&rule(&[])).settings.flags & setting_flags::NEIGHBOR, 0);
}

#[test]
fn what_it_says_survives_storing() {
    let (config, _) = read(&format!("{FILE}answer = \"while-alive\"\n")).unwrap();
    let stored = serde_json::to_string(&config).unwrap();
    let mut restored: Config = serde_json::from_str(&stored).unwrap();
    (restored.path, restored.warnings) = (config.path.clone(), config.warnings.clone());
    assert_eq!(restored, config);
    assert!(config.without("neighbor-wg0").unwrap().neighbors.is_empty());
}

#[test]
fn interfaces_without_link_header_and_a_kernel_that_does_not_forward() {
    let headerless = |name: &'static str| {
        move |machine: &mut Machine| {
            machine.interfaces.iter_mut().filter(|one| one.name == name).for_each(|one| one.has_link_header = false);
        }
    };
    assert_eq!(said_on(FILE, headerless("wg0")), "");
    assert_eq!(
        said_on(&format!("{FILE}answer = \"while-alive\"\n"), headerless("wg0")),
        "f.toml:5:10: neighbor \"neighbor-wg0\": answer \"while-alive\" asks the hosts behind wg0, which has no link header and so \
         no neighbours to ask\n  try: answer = \"always\""
    );
    assert_eq!(
        said_on(FILE, headerless("eth0")),
        "f.toml:2:13: neighbor \"neighbor-wg0\": interface \"eth0\" has no link header: nobody asks for addresses there\n  \
         try: the Ethernet interface where the addresses are asked for"
    );
    let off = ["net.ipv4.conf.wg0.forwarding", "net.ipv6.conf.all.forwarding", "net.ipv4.conf.eth1.forwarding"];
    let off = |machine: &mut Machine| machine.forwarding_off = off.map(str::to_owned).into();
    assert_eq!(
        said_on(FILE, off),
        "f.toml:2:13: warning: neighbor \"neighbor-wg0\": net.ipv4.conf.wg0.forwarding is 0: the kernel will not forward what the \
         answers attract\n  try: `sysctl net.ipv4.ip_forward=1`\n\
         f.toml:2:13: warning: neighbor \"neighbor-wg0\": net.ipv6.conf.all.forwarding is 0: the kernel will not forward what the \
         answers attract\n  try: `sysctl net.ipv6.conf.all.forwarding=1`"
    );
}

/// The daemon waits for an interface, and for an address to answer from.
#[test]
fn what_is_not_there_yet_is_waited_for() {
    let (_, compiled) = read_on(&FILE.replace("wg0", "tap0"), |machine| machine.followed = true).unwrap();
    assert_eq!(compiled.warnings.waiting().count(), 1);
    assert!(compiled.neighbors[0].asked.is_empty() && compiled.v6.ranges.is_empty());
    let (_, compiled) = read_on(FILE, |machine| {
        machine.followed = true;
        machine.interfaces[1].addresses.retain(|address| address.addr().is_ipv4());
    })
    .unwrap();
    assert_eq!(compiled.warnings.waiting().count(), 1);
    assert_eq!((compiled.v4.ranges.len(), compiled.v6.ranges.len()), (1, 0));
}
