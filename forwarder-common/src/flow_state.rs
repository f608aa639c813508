//! The life of a flow, as a pure function of what is seen.
//!
//! ```text
//!              reply            client again            FIN of one side     FIN of the other
//!   Opening ──────────▶ Answered ──────────▶ Established ───────────────▶ Closing ───────────▶ Closed
//!      ▲                                          │                          │                    │
//!      │                                          └────── RST from anyone ──▶ Reset ◀─────────────┘
//!      └──────────────────── a client's SYN reopens what is Closed or Reset ────┘
//! ```
//!
//! A SYN-ACK of the backend opens what is half closed again: the client forgot the connection and uses its port anew.
//!
//! Only `Established` is protected from a flood and handled by XDP; it takes three packets and both sides, so a
//! spoofed source never gets there unless it guesses what was answered.

use crate::{
    abi::{Direction, Ticks, Timeouts},
    wire::{protocol, tcp},
};

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// Only the client has sent.
    Opening = 0,
    /// The backend has answered.
    Answered = 1,
    /// The client has answered that.
    Established = 2,
    /// The client has sent a FIN, the backend not yet.
    ClientClosed = 3,
    /// The backend has sent a FIN, the client not yet.
    BackendClosed = 4,
    /// Both have sent a FIN.
    Closed = 5,
    /// A RST was seen (RFC 7857 section 2.2: the flow is kept a while, for it may have been forged).
    Reset = 6,
    /// After a RST the client has gone on; if the backend does too, the RST was forged or stale (RFC 6146 section 3.5.2.2,
    /// but both have to: after a true RST one side's packets may still be under way).
    ClientGoesOn = 7,
    /// After a RST the backend has gone on, the client not yet.
    BackendGoesOn = 8,
}

impl FlowState {
    /// All states, by number.
    pub const ALL: [Self; 9] = [
        Self::Opening,
        Self::Answered,
        Self::Established,
        Self::ClientClosed,
        Self::BackendClosed,
        Self::Closed,
        Self::Reset,
        Self::ClientGoesOn,
        Self::BackendGoesOn,
    ];

    /// The state that a map value holds; an unknown number is a dead flow.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Opening,
            1 => Self::Answered,
            2 => Self::Established,
            3 => Self::ClientClosed,
            4 => Self::BackendClosed,
            5 => Self::Closed,
            7 => Self::ClientGoesOn,
            8 => Self::BackendGoesOn,
            _ => Self::Reset,
        }
    }

    /// The name in tables and JSON: stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::ClientClosed => "client-closed",
            Self::BackendClosed => "backend-closed",
            Self::Closed => "closed",
            Self::Reset | Self::ClientGoesOn | Self::BackendGoesOn => "reset",
        }
    }

    /// The state after a packet. `flags` are TCP's, 0 for every other protocol.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, direction: Direction, flags: u8) -> Self {
        let from_client = matches!(direction, Direction::Forward);
        if flags & tcp::RST != 0 {
            return Self::Reset;
        }
        if flags & tcp::SYN != 0 {
            return match (self, from_client) {
                // Port reuse after the end (RFC 9293 section 3.6.1 lets a SYN reopen a TIME-WAIT connection).
                (Self::Closed | Self::Reset | Self::ClientGoesOn | Self::BackendGoesOn, true) => Self::Opening,
                (Self::Opening, false) => Self::Answered,
                // A new connection on the ports of one that never ended properly: the backend's word for it counts.
                (Self::ClientClosed | Self::BackendClosed, false) if flags & tcp::ACK != 0 => Self::Answered,
                (state, _) => state,
            };
        }
        if flags & tcp::FIN != 0 {
            return match (self, from_client) {
                (Self::BackendClosed, true) | (Self::ClientClosed, false) | (Self::Closed, _) => Self::Closed,
                (Self::Reset | Self::ClientGoesOn | Self::BackendGoesOn, _) => Self::Reset,
                (_, true) => Self::ClientClosed,
                (_, false) => Self::BackendClosed,
            };
        }
        match (self, from_client) {
            (Self::Opening | Self::ClientGoesOn, false) => Self::Answered,
            (Self::Answered | Self::BackendGoesOn, true) => Self::Established,
            (Self::Reset, true) => Self::ClientGoesOn,
            (Self::Reset, false) => Self::BackendGoesOn,
            (state, _) => state,
        }
    }

    /// Whether no more than stragglers is expected.
    #[inline(always)]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }

    /// How long a flow in this state lives without packets.
    #[inline(always)]
    pub const fn timeout(self, protocol: u8, timeouts: &Timeouts) -> Ticks {
        match protocol {
            protocol::TCP => match self {
                Self::Opening | Self::Answered => timeouts.tcp_opening,
                Self::Established => timeouts.tcp_established,
                Self::ClientClosed | Self::BackendClosed | Self::Closed => timeouts.tcp_closing,
                Self::Reset | Self::ClientGoesOn | Self::BackendGoesOn => timeouts.tcp_reset,
            },
            protocol::UDP => match self {
                Self::Opening | Self::Answered => timeouts.udp_opening,
                _ => timeouts.udp_established,
            },
            protocol::ICMP | protocol::ICMPV6 => timeouts.icmp,
            _ => timeouts.other,
        }
    }
}

#[cfg(test)]
mod tests;
