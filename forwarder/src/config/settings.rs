//! Everything in a configuration that is not a rule.

use std::{fmt, ops::RangeInclusive, str::FromStr, time::Duration};

use forwarder_common::mss;
use serde::{Deserialize, Serialize};

use super::rule::Placed;

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Native XDP where the driver does it well, else TC alone.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// TC alone.
    Tc,
    /// XDP in the kernel's generic path: for tests, slower than TC.
    Generic,
}

/// What the programs log; the order is "logs at least as much as".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing: the logging code is not even loaded.
    #[default]
    Off,
    /// What should never happen.
    Error,
    /// Packets dropped for want of room or of a route.
    Warn,
    /// Flows.
    Info,
    /// Decisions.
    Debug,
    /// Packets.
    Trace,
}

/// Whether the segment size that TCP announces is lowered to what the way takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "TypedMssClamp", into = "TypedMssClamp")]
pub enum MssClamp {
    /// By the MTUs of the way out and of the way back.
    #[default]
    ByMtu,
    /// Never.
    Off,
    /// By the MTUs, and to this at most, in bytes.
    AtMost(u16),
}

/// As it stands in a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum TypedMssClamp {
    Switch(bool),
    Number(u16),
}

impl From<TypedMssClamp> for MssClamp {
    fn from(typed: TypedMssClamp) -> Self {
        match typed {
            TypedMssClamp::Switch(true) => Self::ByMtu,
            TypedMssClamp::Switch(false) => Self::Off,
            TypedMssClamp::Number(most) => Self::AtMost(most),
        }
    }
}

impl From<MssClamp> for TypedMssClamp {
    fn from(clamp: MssClamp) -> Self {
        match clamp {
            MssClamp::ByMtu => Self::Switch(true),
            MssClamp::Off => Self::Switch(false),
            MssClamp::AtMost(most) => Self::Number(most),
        }
    }
}

impl MssClamp {
    /// What [`MssClamp::AtMost`] may be: what Linux takes for a segment size, up to what fits an IPv4 packet.
    pub const NUMBERS: RangeInclusive<u16> = 88..=65_495;

    /// As the programs want it ([`forwarder_common::mss`]).
    pub const fn limit(self) -> u16 {
        match self {
            Self::ByMtu => mss::BY_MTU,
            Self::Off => mss::UNCHANGED,
            Self::AtMost(most) => most,
        }
    }
}

impl fmt::Display for MssClamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByMtu => f.pad("by MTU"),
            Self::Off => f.pad("unchanged"),
            Self::AtMost(most) => f.pad(&format!("at most {most}, by MTU")),
        }
    }
}

/// Makes `$type` read and print as one of a few words.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),* $(,)? }) => {
        impl $type {
            /// The words it is written as.
            pub const WORDS: &'static [&'static str] = &[$($word),*];
        }
        impl FromStr for $type {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($word => Ok(Self::$variant),)* _ => Err(()) }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $word),* })
            }
        }
    };
}
words!(Mode { Auto = "auto", Native = "native", Tc = "tc", Generic = "generic" });
words!(LogLevel {
    Off = "off",
    Error = "error",
    Warn = "warn",
    Info = "info",
    Debug = "debug",
    Trace = "trace",
});

/// How much there may be of what costs memory. The defaults suit a machine with 512 MB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Established flows, of each address family.
    pub flows: u32,
    /// Flows whose handshake is not complete, of each address family.
    pub new_flows: u32,
    /// Listens of all rules together, of each address family. None: as many as the configuration needs,
    /// and at least [`Limits::DEFAULT_RULES`].
    pub rules: Option<Placed<u32>>,
}

impl Limits {
    /// How many listens there is room for when the configuration does not say.
    pub const DEFAULT_RULES: u32 = 4096;
    /// What [`Limits::flows`] may be.
    pub const FLOWS: RangeInclusive<u32> = 64..=16_777_216;
    /// What [`Limits::new_flows`] may be.
    pub const NEW_FLOWS: RangeInclusive<u32> = 64..=4_194_304;
    /// What [`Limits::rules`] may be.
    pub const RULES: RangeInclusive<u32> = 16..=1_048_576;
}

impl Default for Limits {
    fn default() -> Self {
        Self { flows: 32_768, new_flows: 8_192, rules: None }
    }
}

/// How long flows live without packets; see [`forwarder_common::abi::Timeouts`] for the RFCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// TCP before the handshake is complete.
    pub tcp_opening: Duration,
    /// TCP established.
    pub tcp_established: Duration,
    /// TCP after a FIN.
    pub tcp_closing: Duration,
    /// TCP after a RST.
    pub tcp_reset: Duration,
    /// UDP without packets both ways.
    pub udp_opening: Duration,
    /// UDP with packets both ways.
    pub udp_established: Duration,
    /// ICMP echo.
    pub icmp: Duration,
    /// Every other protocol.
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        Self {
            tcp_opening: minutes(4),
            tcp_established: minutes(124),
            tcp_closing: minutes(4),
            tcp_reset: minutes(4),
            udp_opening: minutes(2),
            udp_established: minutes(5),
            icmp: minutes(1),
            other: minutes(10),
        }
    }
}

impl Timeouts {
    /// The timeout with this key.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Duration> {
        Some(match key {
            "tcp_opening" => &mut self.tcp_opening,
            "tcp_established" => &mut self.tcp_established,
            "tcp_closing" => &mut self.tcp_closing,
            "tcp_reset" => &mut self.tcp_reset,
            "udp_opening" => &mut self.udp_opening,
            "udp_established" => &mut self.udp_established,
            "icmp" => &mut self.icmp,
            "other" => &mut self.other,
            _ => return None,
        })
    }
}

/// Below this a timeout is not one.
pub(super) const SHORTEST_TIMEOUT: Duration = Duration::from_secs(1);
/// The programs' clock tells durations apart up to 26 days.
pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 86_400);

/// The shortest a timeout may be without breaking an RFC.
pub(super) struct TimeoutRule {
    pub(super) key: &'static str,
    pub(super) minimum: Duration,
    pub(super) source: &'static str,
}

/// The timeouts that an RFC sets a minimum for.
pub(super) const TIMEOUT_RULES: [TimeoutRule; 6] = {
    const fn rule(key: &'static str, minutes: u64, source: &'static str) -> TimeoutRule {
        TimeoutRule { key, minimum: Duration::from_secs(60 * minutes), source }
    }
    [
        rule("tcp_opening", 4, "RFC 5382 section 5 (REQ-5)"),
        rule("tcp_established", 124, "RFC 5382 section 5 (REQ-5)"),
        rule("tcp_closing", 4, "RFC 5382 section 5 (REQ-5)"),
        rule("udp_opening", 2, "RFC 4787 section 4.3 (REQ-5)"),
        rule("udp_established", 2, "RFC 4787 section 4.3 (REQ-5)"),
        rule("icmp", 1, "RFC 5508 section 3.2 (REQ-2)"),
    ]
};
