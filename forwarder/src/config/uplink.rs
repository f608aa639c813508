//! `[[uplink]]`: a line by name, and how one finds out whether it works.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    file::FileUplink,
    interfaces, nearest,
    report::{Report, on_line},
    rule::Placed,
    syntax::{self, SyntaxError},
    validate,
};
use crate::machine::Machine;

/// Who is asked whether a line works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Probe {
    /// Nobody: it works while its interface is up and has a carrier. Without these no line works, however it is probed.
    #[default]
    Carrier,
    /// Its router, by ARP or neighbour discovery.
    Gateway,
    /// This address, by a ping that leaves by the line.
    Ping(IpAddr),
}

impl Probe {
    /// The words it is written as.
    const WORDS: [&'static str; 3] = ["carrier", "gateway", "ping ADDR"];
}

impl FromStr for Probe {
    type Err = SyntaxError;

    fn from_str(text: &str) -> Result<Self, SyntaxError> {
        let mut words = text.split_whitespace();
        let parsed = match (words.next(), words.next(), words.next()) {
            (Some("carrier"), None, None) => Some(Self::Carrier),
            (Some("gateway"), None, None) => Some(Self::Gateway),
            (Some("ping"), Some(target), None) => {
                let hint = "ping and an address: \"ping 192.0.2.1\"";
                let target = target.parse::<IpAddr>().map_err(|_| SyntaxError {
                    what: format!("\"{target}\" is not an address"),
                    hint: hint.to_owned(),
                })?;
                syntax::unicast(target, hint)?;
                Some(Self::Ping(target))
            }
            _ => None,
        };
        parsed.ok_or_else(|| {
            let hint = nearest::near(text, Self::WORDS)
                .map_or_else(|| format!("one of {}", Self::WORDS.join(", ")), |near| format!("\"{near}\""));
            SyntaxError { what: "not a kind of probe".to_owned(), hint }
        })
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Carrier => f.pad("carrier"),
            Self::Gateway => f.pad("gateway"),
            Self::Ping(target) => f.pad(&format!("ping {target}")),
        }
    }
}
syntax::stored_as_text!(Probe);

/// An `[[uplink]]`, every value of which is valid by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Unique among the uplinks.
    pub name: Placed<String>,
    /// The interface that it leaves by.
    pub interface: Placed<String>,
    /// The router at its other end, at most one of each family; empty where the line has but one other end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<Placed<IpAddr>>,
    /// Who is asked: the line works if one of them answers. Never empty.
    pub probe: Vec<Placed<Probe>>,
    /// Between two questions, and as long is waited for an answer.
    pub interval: Duration,
    /// So many questions in a row without an answer, and it is down.
    pub fall: u32,
    /// So many in a row with an answer, and it is up again.
    pub rise: u32,
}

impl Uplink {
    /// Whether anybody has to be asked again and again, which `forwarder run` does.
    pub fn asks(&self) -> bool {
        self.probe.iter().any(|probe| probe.value != Probe::Carrier)
    }
}

impl Uplink {
    /// Why nothing goes by this line now; none if it works.
    pub fn trouble(&self, machine: &Machine) -> Option<String> {
        let name = &self.interface.value;
        let Some(interface) = machine.interface(name) else { return Some(format!("{name} is not there")) };
        if !interface.up {
            return Some(format!("{name} is switched off"));
        }
        if !interface.carrier {
            return Some(format!("{name} has no carrier"));
        }
        machine.down.get(&self.name.value).cloned()
    }
}

const INTERVAL: Duration = Duration::from_secs(1);
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
const FALL: u32 = 3;
const RISE: u32 = 2;
/// For both of them.
const TIMES: std::ops::RangeInclusive<i64> = 1..=1000;

/// Checks one by itself; none if a part that it cannot be without is missing.
pub(super) fn read(typed: &FileUplink, report: &mut Report) -> Option<Uplink> {
    let label = typed.label();
    if let Some(name) = &typed.name {
        validate::check_name(name, report);
    }
    let interface = typed.interface.clone().filter(|name| interfaces::is_name(name, "interface", &label, report));
    let gateway = typed
        .gateway
        .as_ref()
        .map(|list| interfaces::one_of_each_family(list, "gateway", &label, "the router's address", report))
        .unwrap_or_default();
    let probe = match &typed.probe {
        Some(list) if list.value.is_empty() => {
            report.error(list.place, format!("{label}`probe` is an empty list"), "probe = \"carrier\"");
            Vec::new()
        }
        Some(list) => validate::parsed(Some(list), "probe", &label, report),
        None => vec![Placed::nowhere(Probe::Carrier)],
    };
    if let Some(probe) = probe.iter().find(|probe| probe.value == Probe::Gateway).filter(|_| gateway.is_empty()) {
        let what = format!("{label}probe \"gateway\" without a `gateway`");
        report.error(probe.place, what, "gateway = \"192.0.2.1\", or probe = \"ping ADDR\" on a line that has none");
    }
    let times = |given: Option<Placed<i64>>, key: &str, default: u32, report: &mut Report| {
        let Some(given) = given else { return default };
        if !TIMES.contains(&given.value) {
            let what = format!("{label}`{key}` is {} and so out of range", given.value);
            report.error(given.place, what, format!("a number from {} to {}", TIMES.start(), TIMES.end()));
        }
        u32::try_from(given.value).unwrap_or(default)
    };
    let fall = times(typed.fall, "fall", FALL, report);
    let rise = times(typed.rise, "rise", RISE, report);
    let interval = typed.interval.as_ref().map_or(INTERVAL, |text| interval(text, &label, report));
    Some(Uplink { name: typed.name.clone()?, interface: interface?, gateway, probe, interval, fall, rise })
}

fn interval(text: &Placed<String>, label: &str, report: &mut Report) -> Duration {
    let [least, most] = [INTERVALS.start(), INTERVALS.end()].map(|time| humantime::format_duration(*time));
    let hint = format!("a time from \"{least}\" to \"{most}\"");
    let Ok(interval) = humantime::parse_duration(&text.value) else {
        report.error(text.place, format!("{label}interval \"{}\" is not a time", text.value), hint);
        return INTERVAL;
    };
    if !INTERVALS.contains(&interval) {
        report.error(text.place, format!("{label}interval \"{}\" is out of range", text.value), hint);
    }
    interval
}

/// Reports uplinks of the same name.
pub(super) fn check_names(uplinks: &[Uplink], report: &mut Report) {
    for (n, uplink) in uplinks.iter().enumerate() {
        let before = uplinks.iter().take(n).find(|other| other.name.value == uplink.name.value);
        if let Some(other) = before {
            let what = format!("uplink \"{}\" is there already{}", uplink.name.value, on_line(other.name.place));
            report.error(uplink.name.place, what, "a name of its own for each");
        }
    }
}

/// The uplink of this name; reports it if there is none.
pub(super) fn named<'u>(
    name: &Placed<String>,
    key: &str,
    label: &str,
    uplinks: &'u [Uplink],
    report: &mut Report,
) -> Option<&'u Uplink> {
    let found = uplinks.iter().find(|uplink| uplink.name.value == name.value);
    if found.is_none() {
        let names: Vec<&str> = uplinks.iter().map(|uplink| uplink.name.value.as_str()).collect();
        let hint = match nearest::near(name, names.iter().copied()) {
            Some(near) => format!("\"{near}\""),
            None if names.is_empty() => "an [[uplink]] table with that name and an interface".to_owned(),
            None => format!("one of {}", names.join(", ")),
        };
        report.error(name.place, format!("{label}{key} \"{}\": there is no such uplink", name.value), hint);
    }
    found
}
