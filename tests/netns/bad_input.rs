//! Whatever is wrong: a clear error, the right exit status, and a machine as it was.

use std::fs;
use std::process::Command;

use forwarder_lab::{Family, Ping, Topology};

use crate::forwarder::{Ended, Forwarder, end};
use crate::setting::Setting;
use crate::snapshot::{Snapshot, assert_unchanged};

const SETTING: Setting = Setting::NATIVE_TWO_ARMED;
/// Exit statuses.
const FAILED: i32 = 1;
const WRONG_INPUT: i32 = 2;

const GOOD: &str = r#"
[[forward]]
name = "web"
listen = "198.51.100.1:80"
to = "10.8.0.2:8080"
"#;

/// A configuration that is wrong, and what the error must name.
struct Wrong {
    what: &'static str,
    config: &'static str,
    says: &'static [&'static str],
}

const WRONG: &[Wrong] = &[
    Wrong { what: "TOML syntax", config: "[[forward]]\nname = \"web\nlisten = 3", says: &[".toml:2:"] },
    Wrong {
        what: "unknown key",
        config: "[[forward]]\nname = \"web\"\nlistn = \"198.51.100.1:80\"\nto = \"10.8.0.2:80\"",
        says: &[".toml:3:1", "listn", "listen"],
    },
    Wrong { what: "unknown table", config: "[[foward]]\nname = \"web\"", says: &[".toml:1:", "foward", "forward"] },
    Wrong {
        what: "port out of range",
        config: "[[forward]]\nname = \"web\"\nlisten = \"198.51.100.1:65536\"\nto = \"10.8.0.2:80\"",
        says: &[".toml:3:", "65536"],
    },
    Wrong {
        what: "families that differ",
        config: "[[forward]]\nname = \"web\"\nlisten = \"198.51.100.1:80\"\nto = \"[fd08::2]:80\"",
        says: &[".toml:", "IPv4", "IPv6"],
    },
    Wrong {
        what: "an address that is not ours",
        config: "[[forward]]\nname = \"web\"\nlisten = \"198.51.100.1:80\"\nto = \"10.8.0.2:80\"\nsource = \"192.0.2.1\"",
        says: &[".toml:5:", "192.0.2.1"],
    },
    Wrong {
        what: "ranges of different lengths",
        config: "[[forward]]\nname = \"web\"\nlisten = \"198.51.100.1:80-89\"\nto = \"10.8.0.2:80-88\"",
        says: &[".toml:", "10", "9"],
    },
    Wrong {
        what: "no such interface to listen on",
        config: "[[forward]]\nname = \"web\"\nlisten = \"nosuch0:80\"\nto = \"10.8.0.2:80\"",
        says: &[".toml:3:", "nosuch0"],
    },
    Wrong {
        what: "everything at once",
        config: r#"
[[forward]]
name = "web"
listen = "198.51.100.1:80"
to = "10.8.0.2:80"
[[forward]]
name = "web"
listen = "198.51.100.1:81"
to = "10.8.0.2:81"
[[forward]]
name = "third"
listen = "198.51.100.1:80"
to = "10.8.0.2:82"
protcol = "tcp"
[[forward]]
name = "fourth"
listen = "198.51.100.1:70000"
to = "10.8.0.2:83"
[[forward]]
name = "fifth"
listen = "198.51.100.1:90-99"
to = "10.8.0.2:90-98"
"#,
        says: &[".toml:7:", ".toml:12:", ".toml:14:", ".toml:17:", ".toml:22:", "protocol"],
    },
    Wrong { what: "too many rules for its own limit", config: TOO_MANY, says: &["16"] },
];

const TOO_MANY: &str = r#"
[limits]
rules = 16
[[forward]]
name = "many"
listen = ["198.51.100.1:1", "198.51.100.1:2", "198.51.100.1:3", "198.51.100.1:4", "198.51.100.1:5",
    "198.51.100.1:6", "198.51.100.1:7", "198.51.100.1:8", "198.51.100.1:9", "198.51.100.1:10",
    "198.51.100.1:11", "198.51.100.1:12", "198.51.100.1:13", "198.51.100.1:14", "198.51.100.1:15",
    "198.51.100.1:16", "198.51.100.1:17", "198.51.100.1:18"]
to = "10.8.0.2"
"#;

struct Test {
    net: Topology,
    forwarder: Forwarder,
    before: Snapshot,
}

impl Test {
    fn start(name: &str) -> Self {
        let net = SETTING.network(name);
        let forwarder = Forwarder::on(&net);
        let before = Snapshot::of(&forwarder);
        Self { net, forwarder, before }
    }

    /// Ended with `code`, said all of `words` on standard error, and nothing else happened.
    fn is_refused(&self, what: &str, ended: &Ended, code: i32, words: &[&str]) {
        assert_eq!(ended.code, Some(code), "{what}: {ended}");
        for word in words {
            assert!(ended.stderr.contains(word), "{what}: says nothing of {word:?}: {ended}");
        }
        assert!(!ended.stderr.contains("panicked"), "{what}: {ended}");
        assert_unchanged(&self.before, &self.forwarder, what);
    }
}

#[test]
fn wrong_configurations_are_refused_by_check_and_load() {
    let test = Test::start("badconfig");
    for Wrong { what, config, says } in WRONG {
        test.forwarder.configure(config);
        let check = test.forwarder.run(&["check", test.forwarder.config.to_str().unwrap()]);
        test.is_refused(what, &check, WRONG_INPUT, says);
        let load = test.forwarder.run(&test.forwarder.load_arguments(SETTING));
        test.is_refused(what, &load, WRONG_INPUT, says);
    }
}

#[test]
fn wrong_configurations_are_refused_by_reload_and_change_nothing() {
    let test = Test::start("badreload");
    test.forwarder.load(SETTING, GOOD);
    let loaded = Snapshot::of(&test.forwarder);
    let list = format!("{:?}", test.forwarder.list());
    for Wrong { what, config, says } in WRONG {
        test.forwarder.configure(config);
        let reload = test.forwarder.run(&["reload"]);
        // The limit is that of `load`.
        if *what != "too many rules for its own limit" {
            assert_eq!(reload.code, Some(WRONG_INPUT), "{what}: {reload}");
            assert!(says.iter().all(|word| reload.stderr.contains(word)), "{what}: {reload}");
            assert_eq!(format!("{:?}", test.forwarder.list()), list, "{what}");
        }
        assert_unchanged(&loaded, &test.forwarder, what);
    }
}

#[test]
fn a_configuration_that_has_outgrown_its_maps_changes_nothing() {
    let test = Test::start("outgrown");
    test.forwarder.load(SETTING, &format!("[limits]\nrules = 16\n{GOOD}"));
    let list = format!("{:?}", test.forwarder.list());
    test.forwarder.configure(TOO_MANY);
    let reload = test.forwarder.run(&["reload"]);
    assert!(matches!(reload.code, Some(FAILED | WRONG_INPUT)) && reload.stderr.contains("16"), "{reload}");
    assert_eq!(format!("{:?}", test.forwarder.list()), list);
}

#[test]
fn wrong_command_lines() {
    let test = Test::start("badline");
    test.forwarder.configure(GOOD);
    let config = test.forwarder.config.to_str().unwrap();
    let lines: &[(&str, &[&str], i32, &[&str])] = &[
        ("unknown command", &["laod"], WRONG_INPUT, &["laod", "load"]),
        ("unknown option", &["load", "--ifcae", "eth0"], WRONG_INPUT, &["--ifcae", "--iface"]),
        ("unknown mode", &["load", "--iface", "eth0", "--mode", "fast"], WRONG_INPUT, &["fast", "native"]),
        ("no such interface", &["load", "--iface", "nosuch0", "--config", config], WRONG_INPUT, &["nosuch0", "eth0"]),
        ("no interface", &["load", "--config", config], WRONG_INPUT, &["--iface"]),
        ("no such file", &["load", "--iface", "eth0", "--config", "/no/such/file"], WRONG_INPUT, &["/no/such/file"]),
        ("a directory", &["load", "--iface", "eth0", "--config", "/tmp"], WRONG_INPUT, &["/tmp"]),
        ("no such file to check", &["check", "/no/such/file"], WRONG_INPUT, &["/no/such/file"]),
    ];
    for (what, arguments, code, words) in lines {
        test.is_refused(what, &test.forwarder.run(arguments), *code, words);
    }
}

#[test]
fn commands_without_anything_loaded() {
    let test = Test::start("notloaded");
    test.forwarder.configure(GOOD);
    for arguments in [
        &["unload"][..],
        &["reload"],
        &["list"],
        &["status"],
        &["stats"],
        &["flows"],
        &["add", "x", "198.51.100.1:80", "10.8.0.2:80"],
        &["remove", "web"],
    ] {
        let what = arguments.join(" ");
        test.is_refused(&what, &test.forwarder.run(arguments), FAILED, &["not loaded", "forwarder load"]);
    }
}

#[test]
fn loading_twice() {
    let test = Test::start("twice");
    test.forwarder.load(SETTING, GOOD);
    let loaded = Snapshot::of(&test.forwarder);
    let again = test.forwarder.run(&test.forwarder.load_arguments(SETTING));
    assert_eq!(again.code, Some(FAILED), "{again}");
    assert!(again.stderr.contains("already loaded") && again.stderr.contains("reload"), "{again}");
    assert_unchanged(&loaded, &test.forwarder, "loading twice");
    assert_eq!(test.forwarder.list().names(), ["web"]);
}

#[test]
fn another_xdp_program_in_the_way() {
    let test = Test::start("inway");
    // Another instance is another program as good as any; it sits on the second interface only.
    let other = Forwarder::another_on(&test.net, "other");
    other.configure("");
    other.succeed(&["load", "--mode", "native", "--iface", "eth1", "--config", other.config.to_str().unwrap()]);
    let with_other = Snapshot::of(&test.forwarder);
    test.forwarder.configure(GOOD);
    let refused = test.forwarder.run(&test.forwarder.load_arguments(SETTING));
    assert_eq!(refused.code, Some(FAILED), "{refused}");
    assert!(refused.stderr.contains("eth1") && refused.stderr.contains("XDP"), "{refused}");
    assert_unchanged(&with_other, &test.forwarder, "another XDP program");
    other.succeed(&["unload"]);
    test.forwarder.succeed(&test.forwarder.load_arguments(SETTING));
    test.forwarder.succeed(&["unload"]);
    assert_unchanged(&test.before, &test.forwarder, "after all");
}

#[test]
fn no_permission() {
    let test = Test::start("nobody");
    test.forwarder.configure(GOOD);
    // Where nobody can read it: the target directory may be root's alone.
    let readable = std::env::temp_dir().join(format!("{}-binary", test.net.lab.id()));
    test.net.lab.delete_at_end(&readable).unwrap();
    // By a process of its own: what this one has open for writing, so has whatever another thread starts just now, and it could
    // not be run until that has ended.
    let mut copy = Command::new("cp");
    copy.arg(crate::forwarder::binary()).arg(&readable);
    let copied = end(copy);
    assert_eq!(copied.code, Some(0), "{copied}");
    for arguments in [&test.forwarder.load_arguments(SETTING)[..], &["unload"], &["status"], &["reload"]] {
        let mut command = test.forwarder.host.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&readable);
        command.arg("--pins").arg(&test.forwarder.pins).args(arguments);
        test.is_refused(&arguments.join(" "), &end(command), FAILED, &["root"]);
    }
    // Checking needs no rights.
    let mut check = test.forwarder.host.command("setpriv");
    check.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&readable);
    check.arg("check").arg(&test.forwarder.config);
    let check = end(check);
    assert_eq!(check.code, Some(0), "{check}");
}

#[test]
fn a_file_that_vanishes_after_check() {
    let test = Test::start("vanish");
    test.forwarder.configure(GOOD);
    test.forwarder.succeed(&["check", test.forwarder.config.to_str().unwrap()]);
    fs::remove_file(&test.forwarder.config).unwrap();
    let load = test.forwarder.run(&test.forwarder.load_arguments(SETTING));
    let path = test.forwarder.config.to_str().unwrap();
    test.is_refused("vanished", &load, WRONG_INPUT, &[path, "No such file"]);
    // And one that vanishes while it runs.
    test.forwarder.load(SETTING, GOOD);
    fs::remove_file(&test.forwarder.config).unwrap();
    let reload = test.forwarder.run(&["reload"]);
    assert_eq!(reload.code, Some(WRONG_INPUT), "{reload}");
    assert!(reload.stderr.contains(path), "{reload}");
    assert_eq!(test.forwarder.list().names(), ["web"]);
}

/// Pins without their state, or a state without its pins: said, never guessed; `unload --force` clears both.
#[test]
fn pins_that_do_not_fit() {
    let test = Test::start("pins");
    let id = test.forwarder.pins.file_name().unwrap().to_str().unwrap().to_owned();
    let state = std::path::PathBuf::from(format!("/run/forwarder/{id}.json"));

    test.forwarder.load(SETTING, GOOD);
    fs::remove_file(&state).unwrap();
    let load = test.forwarder.run(&test.forwarder.load_arguments(SETTING));
    assert_eq!(load.code, Some(FAILED), "{load}");
    assert!(load.stderr.contains("unload --force"), "{load}");
    test.forwarder.succeed(&["unload", "--force"]);
    assert_unchanged_links(&test);

    // Pinned by another version, as the state says.
    test.forwarder.load(SETTING, GOOD);
    let saved = fs::read_to_string(&state).unwrap();
    let changed = saved.replacen("\"format\":1", "\"format\":4711", 1).replacen("\"format\": 1", "\"format\": 4711", 1);
    assert_ne!(saved, changed, "the state has a format: {saved}");
    fs::write(&state, changed).unwrap();
    let status = test.forwarder.run(&["reload"]);
    assert_eq!(status.code, Some(FAILED), "{status}");
    assert!(status.stderr.contains("version"), "{status}");
    test.forwarder.succeed(&["unload", "--force"]);
    assert_unchanged_links(&test);
    Ping::to(test.net.public_address(Family::V4)).run(&test.net.client).unwrap();
}

/// `unload --force` without a state cannot know what the sysctls were, but no program may remain.
fn assert_unchanged_links(test: &Test) {
    assert!(!test.forwarder.pins.exists());
    let links = test.forwarder.host.ip("-d link show").unwrap();
    assert!(!links.contains("xdp"), "{links}");
    test.forwarder.load(SETTING, GOOD);
    test.forwarder.succeed(&["unload"]);
}
