//! The kernel's timer removes what has expired, with no process to help.

use std::thread;
use std::time::{Duration, Instant};

use forwarder::bpf::load;
use forwarder::reconcile::Operation;
use forwarder_common::abi::Timeouts;
use forwarder_lab::{Family, patience};

use crate::connection::{Connection, KEEPING_FLOWS, entries};
use crate::fixture::{check_at_tc, warm_up};
use crate::test_packet::Body::{Tcp, Udp};
use crate::test_packet::flags;
use crate::world::{self, World};

const RULES: &str = include_str!("../fixtures/rules.toml");

/// Puts other timeouts into force.
fn set_timeouts(world: &mut World, change: impl FnOnce(&mut Timeouts)) {
    let running = world.tables.running(world.rules.clone()).unwrap();
    let mut part = running.settings;
    change(&mut part.timeouts);
    world.tables.execute(&[Operation::Settings { generation: running.generation, part }]).unwrap();
}

/// Waits for the sweeper. (The kernel tells nobody: ask until it is so.)
fn wait_for(world: &World, family: Family, established: usize) {
    let deadline = Instant::now() + patience();
    while entries(world, family).0 != established {
        assert!(Instant::now() < deadline, "{family:?} has {:?} entries", entries(world, family));
        thread::sleep(Duration::from_millis(10));
    }
}

/// A UDP flow with packets both ways.
fn converse(world: &mut World, connection: Connection) {
    let (packet, left) = connection.request(Udp);
    check_at_tc(world, "the first", &packet, left.begins_flow());
    connection.answer_at_tc(world, "the answer", Udp, forwarder_common::verdict::Outcome::NotOurs);
    connection.request_at_tc(world, "the second", Udp);
}

#[test]
fn expired_flows_vanish_and_make_room_without_any_process() {
    // There is room for two flows.
    world::with_changed(
        RULES,
        |compiled| compiled.sizes.flows = 2,
        |world| {
            load::start_sweep(world.bpf()).unwrap();
            world.end_loader();
            warm_up(world);
            let lasting = world.tables.settings().unwrap().timeouts;
            for round in 0..2_u16 {
                for family in Family::ALL {
                    let connection = |port| Connection::new(family, KEEPING_FLOWS[0], port + 10 * round);
                    if round == 0 {
                        connection(4000).open(world);
                    }
                    converse(world, connection(4002));
                    assert_eq!(entries(world, family), (4, 0));
                }
                // The TCP flow has not expired.
                set_timeouts(world, |timeouts| timeouts.udp_established = 0);
                for family in Family::ALL {
                    wait_for(world, family, 2);
                    Connection::new(family, KEEPING_FLOWS[0], 4000).is_fast(
                        world,
                        "it lives",
                        Tcp(flags::ACK),
                        Tcp(flags::ACK),
                    );
                }
                set_timeouts(world, |timeouts| *timeouts = lasting);
            }
            set_timeouts(world, |timeouts| timeouts.tcp_established = 0);
            for family in Family::ALL {
                wait_for(world, family, 0);
            }
        },
    );
}

#[test]
fn starting_the_sweeper_again_does_no_harm() {
    world::with_changed(
        RULES,
        |compiled| compiled.settings.timeouts.udp_established = 0,
        |world| {
            warm_up(world);
            load::start_sweep(world.bpf()).unwrap();
            load::start_sweep(&mut world.open_again(1)).unwrap();
            converse(world, Connection::new(Family::V4, KEEPING_FLOWS[0], 4000));
            wait_for(world, Family::V4, 0);
        },
    );
}
