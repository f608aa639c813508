#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test that panics has failed")]

use super::FlowState::*;
use super::*;
use crate::abi::Direction::{Forward, Reply};

const NONE: u8 = 0;
use tcp::{ACK, FIN, RST, SYN};

#[test]
fn every_transition() {
    // (from, direction, flags, to)
    let table = [
        (Opening, Forward, SYN, Opening), // retransmission
        (Opening, Reply, SYN | ACK, Answered),
        (Opening, Reply, SYN, Answered), // simultaneous open (RFC 9293 section 3.5)
        (Opening, Forward, NONE, Opening),
        (Opening, Reply, NONE, Answered),
        (Opening, Reply, RST | ACK, Reset),
        (Answered, Forward, ACK, Established),
        (Answered, Forward, NONE, Established), // UDP: a second client packet after a reply
        (Answered, Forward, SYN, Answered),
        (Answered, Reply, SYN | ACK, Answered),
        (Established, Forward, ACK, Established),
        (Established, Forward, SYN, Established), // a stray SYN does not end anything (RFC 5961)
        (Established, Forward, FIN | ACK, ClientClosed),
        (Established, Reply, FIN | ACK, BackendClosed),
        (Established, Reply, RST, Reset),
        (ClientClosed, Forward, FIN | ACK, ClientClosed), // retransmission
        (ClientClosed, Reply, ACK, ClientClosed),         // half-close: data still flows
        (ClientClosed, Reply, FIN | ACK, Closed),
        (BackendClosed, Forward, FIN | ACK, Closed),
        (BackendClosed, Reply, FIN | ACK, BackendClosed),
        (Closed, Forward, ACK, Closed),
        (Closed, Forward, FIN | ACK, Closed),
        (Closed, Forward, SYN, Opening),
        (Closed, Reply, SYN, Closed),
        // A client that came back on the same port before its last connection was over.
        (BackendClosed, Forward, SYN, BackendClosed),
        (BackendClosed, Reply, SYN | ACK, Answered),
        (ClientClosed, Reply, SYN | ACK, Answered),
        (Closed, Reply, SYN | ACK, Closed), // a late copy
        (Reset, Forward, SYN, Opening),
        (Reset, Forward, ACK, ClientGoesOn),
        (Reset, Reply, ACK, BackendGoesOn),
        (ClientGoesOn, Forward, ACK, ClientGoesOn),
        (ClientGoesOn, Reply, ACK, Answered), // both go on: the RST was forged
        (BackendGoesOn, Reply, ACK, BackendGoesOn),
        (BackendGoesOn, Forward, ACK, Established),
        (ClientGoesOn, Forward, RST, Reset),
        (BackendGoesOn, Forward, SYN, Opening),
        (Reset, Reply, FIN, Reset),
    ];
    for (from, direction, flags, to) in table {
        assert_eq!(from.after(direction, flags), to, "{from:?} {direction:?} {flags:#04x}");
    }
}

/// Every state, direction and combination of flags. A RST counts before a SYN, a SYN before a FIN.
#[test]
fn the_whole_table() {
    const SYN_ACK: u8 = SYN | ACK;
    // For each state, of the client's packets and of the backend's: after RST, SYN, SYN with ACK, FIN, anything else.
    #[rustfmt::skip]
    let table: [(FlowState, [FlowState; 5], [FlowState; 5]); 9] = [
        (Opening, [Reset, Opening, Opening, ClientClosed, Opening], [Reset, Answered, Answered, BackendClosed, Answered]),
        (Answered, [Reset, Answered, Answered, ClientClosed, Established], [Reset, Answered, Answered, BackendClosed, Answered]),
        // A SYN within a connection changes nothing (RFC 5961 section 4).
        (Established, [Reset, Established, Established, ClientClosed, Established], [Reset, Established, Established, BackendClosed, Established]),
        (ClientClosed, [Reset, ClientClosed, ClientClosed, ClientClosed, ClientClosed], [Reset, ClientClosed, Answered, Closed, ClientClosed]),
        (BackendClosed, [Reset, BackendClosed, BackendClosed, Closed, BackendClosed], [Reset, BackendClosed, Answered, BackendClosed, BackendClosed]),
        // A client's SYN begins anew (RFC 9293 section 3.6.1).
        (Closed, [Reset, Opening, Opening, Closed, Closed], [Reset, Closed, Closed, Closed, Closed]),
        // Both have to go on (RFC 7857 section 2.2, RFC 6146 section 3.5.2.2).
        (Reset, [Reset, Opening, Opening, Reset, ClientGoesOn], [Reset, Reset, Reset, Reset, BackendGoesOn]),
        (ClientGoesOn, [Reset, Opening, Opening, Reset, ClientGoesOn], [Reset, ClientGoesOn, ClientGoesOn, Reset, Answered]),
        (BackendGoesOn, [Reset, Opening, Opening, Reset, Established], [Reset, BackendGoesOn, BackendGoesOn, Reset, BackendGoesOn]),
    ];
    assert_eq!(table.map(|(state, ..)| state), FlowState::ALL);
    for (from, client, backend) in table {
        for (direction, after) in [(Forward, client), (Reply, backend)] {
            for flags in 0..=u8::MAX {
                let column = match flags {
                    _ if flags & RST != 0 => 0,
                    _ if flags & SYN_ACK == SYN_ACK => 2,
                    _ if flags & SYN != 0 => 1,
                    _ if flags & FIN != 0 => 3,
                    _ => 4,
                };
                assert_eq!(from.after(direction, flags), after[column], "{from:?} {direction:?} {flags:#04x}");
            }
        }
    }
}

#[test]
fn nobody_alone_establishes_a_flow() {
    for direction in [Forward, Reply] {
        for first in 0..=0x3fu8 {
            for second in 0..=0x3fu8 {
                let state = Opening.after(direction, first).after(direction, second);
                assert_ne!(state, Established, "{direction:?} {first:#04x} {second:#04x}");
            }
        }
    }
}

#[test]
fn numbers_and_states_match() {
    for (number, state) in FlowState::ALL.into_iter().enumerate() {
        assert_eq!(state as usize, number);
        assert_eq!(FlowState::from_number(u8::try_from(number).unwrap()), state);
    }
}
