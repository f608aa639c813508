//! Files that are fine: what they mean, and that their meaning survives being stored.

use std::time::Duration;

use super::*;

#[test]
fn an_empty_file_means_the_defaults() {
    let (config, compiled) = read("").unwrap();
    assert_eq!((config.mode, config.log), (Mode::Auto, LogLevel::Off));
    assert_eq!((config.limits, config.timeouts), (Limits::default(), Timeouts::default()));
    assert_eq!((config.interfaces.len(), config.forwards.len(), compiled.rules.len()), (0, 0, 0));
}

#[test]
fn every_setting() {
    let text = "interfaces = \"eth0\"\nmode = \"tc\"\nlog = \"debug\"\n\
                [limits]\nflows = 0x1000\nnew_flows = 100\nrules = 20\n\
                [timeouts]\ntcp_opening = \"5m\"\ntcp_established = \"2h4m\"\ntcp_closing = \"300s\"\ntcp_reset = \"10s\"\n\
                udp_opening = \"2m 30s\"\nudp_established = \"1h\"\nicmp = \"90s\"\nother = \"1day\"\n";
    let (config, compiled) = read(text).unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(config.interfaces, [Placed::nowhere("eth0".to_owned())]);
    assert_eq!((config.mode, config.log), (Mode::Tc, LogLevel::Debug));
    assert_eq!(config.limits, Limits { flows: 4096, new_flows: 100, rules: Some(Placed::nowhere(20)) });
    let timeouts = Timeouts {
        tcp_opening: seconds(300),
        tcp_established: seconds(7440),
        tcp_closing: seconds(300),
        tcp_reset: seconds(10),
        udp_opening: seconds(150),
        udp_established: seconds(3600),
        icmp: seconds(90),
        other: seconds(86_400),
    };
    assert_eq!(config.timeouts, timeouts);
    // A tick is 1.048576 ms.
    assert_eq!(compiled.settings.timeouts.tcp_reset, 9537);
    assert_eq!(compiled.settings.next_hop_lifetime, 954);
    assert!(compiled.warnings.to_string().contains("no rules"));
}

#[test]
fn a_configuration_survives_being_stored() {
    let text = rule(&[
        ("listen", "[\"203.0.113.7:80-89\", \"eth0:443-452\", \"wg0:1-10\"]"),
        ("to", "\"10.8.0.2:1000-1009\""),
        ("protocol", "[\"tcp\", 17]"),
        ("source", "\"203.0.113.8\""),
        ("allow", "[\"198.51.100.0/24\"]"),
        ("stateless", "false"),
    ]) + &rule(&[
        ("name", "\"six\""),
        ("listen", "\"2001:db8::8\""),
        ("to", "\"2001:db8:1::2\""),
        ("protocol", "[\"icmp\", 200]"),
    ]);
    let (config, compiled) = read(&text).unwrap();
    let stored = serde_json::to_string(&config).unwrap();
    let again: Config = serde_json::from_str(&stored).unwrap();
    assert_eq!(again, Config { path: None, warnings: Diagnostics::default(), ..config });
    let recompiled = compile(&again, &routed(&again.backends())).unwrap();
    assert_eq!(
        Compiled { warnings: Diagnostics::default(), ..recompiled },
        Compiled { warnings: Diagnostics::default(), ..compiled }
    );
    assert!(stored.contains(r#""listen":["203.0.113.7:80-89","eth0:443-452","wg0:1-10"]"#), "{stored}");
    assert!(stored.contains(r#""protocol":["icmp","200"]"#), "{stored}");
}

#[test]
fn a_rule_added_and_removed_leaves_the_configuration_as_it_was() {
    let (config, _) = read(&rule(&[])).unwrap();
    let typed = TypedForward {
        name: "ssh".into(),
        listen: vec!["203.0.113.7:2222".into()],
        protocol: vec!["tcp".into()],
        to: "10.8.0.2:22".into(),
        source: Some("preserve".into()),
        allow: vec!["198.51.100.0/24".into()],
        stateless: None,
    };
    let more = config.with(&typed).unwrap();
    assert_eq!(more.forwards.len(), 2);
    // As if the file had had it.
    let text = edit::add_forward(&rule(&[]), &typed).unwrap();
    assert_eq!(load("f.toml", &text).unwrap().forwards, more.forwards);
    assert_eq!(more.without("ssh").unwrap(), config);
}

#[test]
fn the_examples_are_valid() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            match read(&text) {
                Ok((_, compiled)) => assert!(!compiled.rules.is_empty()),
                Err(problems) => panic!("{}: {problems}", path.display()),
            }
            seen += 1;
        }
    }
    assert!(seen >= 4);
}

/// An interface's name stands for its addresses of the backend's family, so one port may lead to two backends.
#[test]
fn one_interface_for_a_backend_of_each_family() {
    let rule = |name: &str, to: &str| format!("[[forward]]\nname = \"{name}\"\nlisten = \"eth0:80\"\nto = \"{to}\"\n");
    let text = rule("v4", "10.8.0.2") + &rule("v6", "fd08::2");
    let (config, _) = read(&text).unwrap();
    load("f.toml", &text).unwrap();
    let typed = |to: &str| TypedForward {
        name: "more".to_owned(),
        listen: vec!["eth0:81".to_owned()],
        to: to.to_owned(),
        ..TypedForward::default()
    };
    let more = config.with(&typed("10.8.0.2")).unwrap();
    more.with(&TypedForward { name: "other".to_owned(), ..typed("fd08::2") }).unwrap();
    assert!(more.with(&TypedForward { name: "again".to_owned(), ..typed("10.8.0.3") }).is_err());
}

/// With somebody who follows the machine, what it does not have yet is no error; the rest works.
#[test]
fn what_is_missing_is_waited_for() {
    const FILE: &str = r#"
[[forward]]
name = "there"
listen = ["203.0.113.7:80", "ppp0:80"]
to = "10.8.0.2"

[[forward]]
name = "listen"
listen = "ppp0:443"
to = "10.8.0.2"

[[forward]]
name = "address"
listen = "eth1:443"
to = "10.8.0.2"

[[forward]]
name = "source"
listen = "203.0.113.7:81"
to = "10.8.0.2"
source = "192.0.2.1"

[[forward]]
name = "route"
listen = "203.0.113.7:82"
to = "10.99.0.2"

[[masquerade]]
name = "out"
from = "10.8.0.0/24"
out = "ppp0"

[[masquerade]]
name = "as"
from = "10.9.0.0/24"
address = "192.0.2.1"
"#;
    let draft = Draft::read("f.toml", FILE);
    let machine = routed(&draft.backends());
    let errors = draft.clone().compile(&machine).unwrap_err();
    assert_eq!(errors.errors().count(), 7, "{errors}");
    let (config, compiled) = draft.compile(&Machine { followed: true, ..machine.clone() }).unwrap();
    assert_eq!(compiled.warnings.waiting().count(), 7, "{}", compiled.warnings);
    let listens: Vec<usize> = compiled.rules.iter().map(|rule| rule.listens.len()).collect();
    assert_eq!(listens, [1, 0, 0, 0, 0]);
    assert_eq!(compiled.v4.rules.len(), 1, "{:?}", compiled.v4.rules);
    // As soon as they are there, they work: the same configuration, compiled anew.
    let mut later = Machine { followed: true, ..machine };
    let ppp0 = Interface {
        index: 9,
        name: "ppp0".to_owned(),
        addresses: vec!["192.0.2.1/32".parse().unwrap()],
        ..later.interfaces[1].clone()
    };
    later.interfaces.push(ppp0);
    let compiled = compile(&config, &later).unwrap();
    let listens: Vec<usize> = compiled.rules.iter().map(|rule| rule.listens.len()).collect();
    assert_eq!(listens, [2, 1, 0, 1, 0]);
    assert_eq!(compiled.masquerades.iter().map(|one| one.ways.len()).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(compiled.warnings.waiting().count(), 2, "{}", compiled.warnings);
}
