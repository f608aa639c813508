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
