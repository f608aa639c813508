//! A reload, write by write: packets see the rules before it or after it, never half of each.

use std::collections::BTreeMap;

use forwarder_common::abi::Settings;
use forwarder_common::verdict::{Kind, Outcome};
use forwarder_lab::Family;

use crate::fixture::{arriving, warm_up};
use crate::plan::{end, rule_name};
use crate::test_packet::Body::Udp;
use crate::test_packet::{NETWORK, TestPacket};
use crate::world::{self, Hook, World};

const BEFORE: &str = include_str!("../fixtures/reload_before.toml");
const AFTER: &str = include_str!("../fixtures/reload_after.toml");
/// For next hops that are known: what [`warm_up`] needs.
const WARM: &str = r#"
[[forward]]
name = "warm-{v}"
listen = "{public}:9"
to = "{backend}:9"
source = "preserve"

[[forward]]
name = "narrow-{v}"
listen = "{public}:95"
to = "{narrow}:95"
source = "preserve"
"#;

/// What a packet meets: its outcome, and its ends if it leaves.
type Answer = (Outcome, Vec<u8>);
/// By what was asked.
type Answers = Vec<(String, Answer)>;

/// The answers to packets for every rule there is before or after, on both hooks.
fn ask(world: &mut World) -> Answers {
    let mut answers = vec![];
    for family in Family::ALL {
        let (client, other) = (end(family, "client", 40_000), end(family, "client_2", 40_000));
        let from = |src, name, port| TestPacket::new(src, end(family, name, port), Udp);
        let back = |name, port| TestPacket::new(end(family, name, port), client, Udp);
        let packets = [
            from(client, "public", 80),
            from(client, "public", 8000),
            from(client, "public", 8001),
            from(client, "public", 8002),
            from(client, "public", 2000),
            from(client, "public", 2050),
            from(client, "public", 81),
            from(other, "public", 81),
            from(client, "public_2", 442),
            from(client, "public_2", 443),
            back("backend", 1000),
            back("backend", 2000),
            back("backend", 12_000),
            back("backend", 1443),
            back("backend_2", 443),
        ];
        for packet in packets {
            for hook in Hook::BOTH {
                let frame = arriving(world, &packet);
                let ran = world.run(hook, &frame);
                let (addresses, ports) = if family == Family::V4 { (12, 20) } else { (8, 40) };
                let ends = if ran.outcome.kind() == Kind::Forward {
                    ran.frame[NETWORK + addresses..NETWORK + ports + 4].to_vec()
                } else {
                    assert_eq!(ran.frame, frame);
                    vec![]
                };
                answers.push((format!("{} to {} at {hook:?}", packet.src, packet.dst), (ran.outcome, ends)));
            }
        }
        // Begins a flow, so only XDP is asked.
        let frame = arriving(world, &from(client, "public", 90));
        let ran = world.run(Hook::Xdp, &frame);
        answers.push((format!("masquerade {family:?}"), (ran.outcome, ran.frame)));
    }
    answers
}

/// Writes the plan to `template`, asking after every write; the answers before, and after the one write that changes
/// them.
fn reload(world: &mut World, template: &str) -> (Answers, Answers) {
    let compiled = world::compile(template);
    let plan = world.plan(&world::ready(compiled));
    let before = ask(world);
    let (mut now, mut flips) = (before.clone(), 0);
    for operation in &plan.operations {
        let Settings { generation, epoch, .. } = world.tables.settings().unwrap();
        world.tables.execute(std::slice::from_ref(operation)).unwrap();
        let settings = world.tables.settings().unwrap();
        if settings.epoch != epoch {
            // The kernel is asked for every way anew, since lines may be others.
            warm_up(world);
        }
        let answers = ask(world);
        if answers != now {
            let changed: Vec<_> = now.iter().zip(&answers).filter(|(old, new)| old != new).collect();
            assert_eq!(settings.generation, generation + 1, "{operation:?} changes {changed:?}");
            flips += 1;
            now = answers;
        }
    }
    assert_eq!(flips, 1, "{:?}", plan.operations);
    world.rules = plan.counters;
    (before, now)
}

#[test]
fn every_packet_sees_the_rules_before_or_after() {
    let (before, after) = (format!("{WARM}{BEFORE}"), format!("{WARM}{AFTER}"));
    // What a fresh instance with the new rules does.
    let mut fresh = vec![];
    world::with(&after, |world| {
        warm_up(world);
        fresh = ask(world);
    });
    world::with(&before, |world| {
        warm_up(world);
        let forwarded = |world: &World| -> BTreeMap<String, u64> {
            world.counts().rules.into_iter().map(|(name, counts)| (name, counts.forward.packets)).collect()
        };
        let (old, new) = reload(world, &after);
        assert_eq!(new, fresh, "after the reload");
        assert_ne!(old, new);
        // The rule that stays has kept its counter: it was asked at least before and after on both hooks.
        let stays = forwarded(world)[&rule_name(Family::V4, "stays")];
        assert!(stays >= 4, "{stays}");
        let (_, again) = reload(world, &before);
        assert_eq!(again, old, "back again");
        assert!(forwarded(world)[&rule_name(Family::V4, "stays")] > stays);
    });
}
