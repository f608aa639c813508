//! From what was typed to what was meant, as far as that can be said without the machine.

use std::{collections::HashMap, str::FromStr, time::Duration};

use ipnet::IpNet;

use super::{
    Config,
    diagnostics::Position,
    file::{File, FileForward, Switch},
    masquerade, nearest, neighbor,
    report::{Report, on_line},
    rule::{Forward, Listen, Placed, Protocol, Source, Target},
    settings::{LONGEST_TIMEOUT, Limits, LogLevel, Mode, MssClamp, SHORTEST_TIMEOUT, TIMEOUT_RULES, Timeouts},
    steer,
    syntax::{self, SyntaxError},
    uplink::{self, Uplink},
};

/// A rule of which some parts may have been wrong, and are then missing here.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) place: Option<Position>,
    pub(super) name: Option<Placed<String>>,
    pub(super) listen: Vec<Placed<Listen>>,
    pub(super) protocol: Option<Vec<Placed<Protocol>>>,
    pub(super) to: Option<Placed<Target>>,
    pub(super) source: Option<Placed<Source>>,
    pub(super) allow: Vec<Placed<IpNet>>,
    pub(super) stateless: Option<Placed<bool>>,
    pub(super) mss_clamp: Option<Placed<MssClamp>>,
}

impl Part {
    /// The rule, if nothing that it cannot be without is missing.
    pub(super) fn into_forward(self) -> Option<Forward> {
        Some(Forward {
            name: self.name?,
            listen: self.listen,
            protocol: self.protocol,
            to: self.to?,
            source: self.source?,
            allow: self.allow,
            stateless: self.stateless,
            mss_clamp: self.mss_clamp,
        })
    }
}

/// Checks everything in a file but how its rules go together.
pub(super) fn file(file: &File, report: &mut Report) -> (Config, Vec<Part>) {
    let uplinks: Vec<Uplink> = file.uplinks.iter().filter_map(|typed| uplink::read(typed, report)).collect();
    uplink::check_names(&uplinks, report);
    let config = Config {
        interfaces: interfaces(&file.interfaces, report),
        mode: word::<Mode>(file.mode.as_ref(), "mode", Mode::WORDS, report),
        log: word::<LogLevel>(file.log.as_ref(), "log", LogLevel::WORDS, report),
        mss_clamp: file.mss_clamp.map(|typed| mss_clamp(typed, "", report).value).unwrap_or_default(),
        fallback_route: file.fallback_route.map(|typed| typed.value),
        limits: limits(&file.limits, report),
        timeouts: timeouts(&file.timeouts, report),
        masquerades: file.masquerades.iter().filter_map(|typed| masquerade::read(typed, report)).collect(),
        steers: file.steers.iter().filter_map(|typed| steer::read(typed, &uplinks, report)).collect(),
        uplinks,
        neighbors: file.neighbors.iter().filter_map(|typed| neighbor::read(typed, report)).collect(),
        ..Config::default()
    };
    let parts = file.forwards.iter().map(|typed| forward(typed, report)).collect();
    (config, parts)
}

fn interfaces(names: &[Placed<String>], report: &mut Report) -> Vec<Placed<String>> {
    let mut kept: Vec<Placed<String>> = Vec::new();
    for name in names {
        if !syntax::is_interface_name(name) {
            let what = format!("\"{}\" is not the name of an interface", name.value);
            report.error(name.place, what, "a name as `ip link` shows it, such as eth0");
        } else if kept.contains(name) {
            report.warning(name.place, format!("interface \"{}\" is named twice", name.value), "name it once");
        } else {
            kept.push(name.clone());
        }
    }
    kept
}

fn word<T: FromStr + Default>(text: Option<&Placed<String>>, key: &str, words: &[&str], report: &mut Report) -> T {
    let Some(text) = text else {
        return T::default();
    };
    text.value.parse().unwrap_or_else(|_| {
        let hint = nearest::near(text, words.iter().copied())
            .map_or_else(|| format!("one of {}", words.join(", ")), |near| format!("\"{near}\""));
        report.error(text.place, format!("{key} \"{}\" does not exist", text.value), hint);
        T::default()
    })
}

fn mss_clamp(typed: Placed<Switch>, label: &str, report: &mut Report) -> Placed<MssClamp> {
    let value = match typed.value {
        Switch::Is(true) => MssClamp::ByMtu,
        Switch::Is(false) => MssClamp::Off,
        Switch::Number(number) => {
            let most = u16::try_from(number).ok().filter(|most| MssClamp::NUMBERS.contains(most));
            if most.is_none() {
                let (least, most) = (MssClamp::NUMBERS.start(), MssClamp::NUMBERS.end());
                let what = format!("{label}`mss_clamp` is {number} and so out of range");
                report.error(typed.place, what, format!("true, false or a number from {least} to {most}"));
            }
            most.map_or(MssClamp::ByMtu, MssClamp::AtMost)
        }
    };
    Placed { value, place: typed.place }
}

fn limits(typed: &[(&'static str, Placed<i64>)], report: &mut Report) -> Limits {
    let mut limits = Limits::default();
    for (key, value) in typed {
        let allowed = match *key {
            "flows" => Limits::FLOWS,
            "new_flows" => Limits::NEW_FLOWS,
            _ => Limits::RULES,
        };
        let Some(number) = u32::try_from(value.value).ok().filter(|number| allowed.contains(number)) else {
            let what = format!("limit `{key}` is {} and so out of range", value.value);
            report.error(value.place, what, format!("a number from {} to {}", allowed.start(), allowed.end()));
            continue;
        };
        match *key {
            "flows" => limits.flows = number,
            "new_flows" => limits.new_flows = number,
            _ => limits.rules = Some(Placed { value: number, place: value.place }),
        }
    }
    limits
}

fn timeouts(typed: &[(&'static str, Placed<String>)], report: &mut Report) -> Timeouts {
    let mut timeouts = Timeouts::default();
    for (key, text) in typed {
        let Ok(duration) = humantime::parse_duration(text) else {
            let what = format!("timeout `{key}` \"{}\" is not a duration", text.value);
            report.error(text.place, what, "a number with its unit, such as \"300s\" or \"2h4m\"");
            continue;
        };
        if !(SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&duration) {
            let what = format!("timeout `{key}` \"{}\" is out of range", text.value);
            report.error(text.place, what, "from \"1s\" to \"24days\"");
            continue;
        }
        check_minimum(key, text, duration, report);
        if let Some(timeout) = timeouts.get_mut(key) {
            *timeout = duration;
        }
    }
    timeouts
}

fn check_minimum(key: &str, text: &Placed<String>, duration: Duration, report: &mut Report) {
    let rule = TIMEOUT_RULES.iter().find(|rule| rule.key == key);
    if let Some(rule) = rule.filter(|rule| duration < rule.minimum) {
        let minimum = humantime::format_duration(rule.minimum).to_string().replace(' ', "");
        let what = format!("timeout `{key}` \"{}\" is shorter than {} allows", text.value, rule.source);
        report.warning(text.place, what, format!("\"{minimum}\" or longer"));
    }
}

/// Checks one rule by itself.
pub(super) fn forward(typed: &FileForward, report: &mut Report) -> Part {
    let label = typed.label();
    let listen: Vec<Placed<Listen>> = parsed(typed.listen.as_ref(), "listen", &label, report);
    let source = match &typed.source {
        Some(text) => parse_one(text, "source", &label, report),
        // One to one, there is no other.
        None if listen.iter().any(|listen| listen.is_prefix()) => {
            Some(Placed { value: Source::Preserve, place: typed.place })
        }
        None => Some(Placed { value: Source::default(), place: typed.place }),
    };
    if let Some(name) = &typed.name {
        check_name(name, report);
    }
    let part = Part {
        place: typed.place,
        name: typed.name.clone(),
        listen: without_repeats(listen, &label, report),
        protocol: typed.protocol.as_ref().map(|list| parsed(Some(list), "protocol", &label, report)),
        to: target(typed, &label, report),
        source,
        allow: allow(typed, &label, report),
        stateless: typed.stateless,
        mss_clamp: typed.mss_clamp.map(|typed| mss_clamp(typed, &label, report)),
    };
    super::agreement::check(&part, &label, report);
    part
}

fn wrong<T>(text: &Placed<String>, key: &str, label: &str, error: SyntaxError, report: &mut Report) -> Option<T> {
    report.error(text.place, format!("{label}{key} \"{}\": {}", text.value, error.what), error.hint);
    None
}

pub(super) fn parse_one<T>(text: &Placed<String>, key: &str, label: &str, report: &mut Report) -> Option<Placed<T>>
where
    T: FromStr<Err = SyntaxError>,
{
    match text.value.parse() {
        Ok(value) => Some(Placed { value, place: text.place }),
        Err(error) => wrong(text, key, label, error, report),
    }
}

pub(super) fn parsed<T>(
    list: Option<&Placed<Vec<Placed<String>>>>,
    key: &str,
    label: &str,
    report: &mut Report,
) -> Vec<Placed<T>>
where
    T: FromStr<Err = SyntaxError>,
{
    let Some(list) = list else {
        return Vec::new();
    };
    if list.value.is_empty() {
        let hint = if key == "protocol" { "leave `protocol` out for the default" } else { "at least one entry" };
        report.error(list.place, format!("{label}`{key}` is an empty list"), hint);
    }
    list.value.iter().filter_map(|text| parse_one(text, key, label, report)).collect()
}

fn without_repeats(listens: Vec<Placed<Listen>>, label: &str, report: &mut Report) -> Vec<Placed<Listen>> {
    let mut seen = std::collections::HashSet::new();
    listens
        .into_iter()
        .filter(|listen| {
            let new = seen.insert(listen.value.clone());
            if !new {
                report.warning(
                    listen.place,
                    format!("{label}listen \"{}\" is there twice", listen.value),
                    "name it once",
                );
            }
            new
        })
        .collect()
}

fn target(typed: &FileForward, label: &str, report: &mut Report) -> Option<Placed<Target>> {
    let list = typed.to.as_ref()?;
    let backends = parsed(Some(list), "to", label, report);
    if list.value.len() > 1 {
        let what = format!("{label}several backends: not supported by this version yet");
        report.error(list.place, what, "one backend, or one rule for each");
    }
    backends.into_iter().next()
}

/// The longest name a rule can have.
const NAME_MAX: usize = 63;

pub(super) fn check_name(name: &Placed<String>, report: &mut Report) {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.value.is_empty() {
        report.error(name.place, "the name of a rule is empty", "name = \"web\"");
    } else if !name.value.chars().all(allowed) {
        let better: String = name.value.chars().map(|c| if allowed(c) { c } else { '-' }).take(NAME_MAX).collect();
        let what = format!("the name \"{}\" has characters other than letters, digits, `.`, `_` and `-`", name.value);
        report.error(name.place, what, format!("name = \"{better}\""));
    } else if name.value.len() > NAME_MAX {
        report.error(name.place, format!("the name \"{}\" is too long", name.value), "at most 63 characters");
    }
}

/// Names that more than one rule has.
pub(super) fn check_names<'a>(names: impl Iterator<Item = &'a Placed<String>>, report: &mut Report) {
    let mut first: HashMap<&str, &Placed<String>> = HashMap::new();
    for name in names {
        let Some(other) = first.get(name.value.as_str()) else {
            first.insert(&name.value, name);
            continue;
        };
        let what = format!("the name \"{}\" is taken by another rule{}", name.value, on_line(other.place));
        report.error(name.place, what, "a name of its own: it is the name of its counters");
    }
}

fn allow(typed: &FileForward, label: &str, report: &mut Report) -> Vec<Placed<IpNet>> {
    let Some(list) = &typed.allow else {
        return Vec::new();
    };
    if list.value.is_empty() {
        let what = format!("{label}`allow` is an empty list: nobody could use the rule");
        report.error(list.place, what, "leave `allow` out to let everyone in");
    }
    let mut prefixes = Vec::with_capacity(list.value.len());
    for text in &list.value {
        match syntax::allow_prefix(text) {
            Ok((prefix, host_bits)) => {
                if host_bits {
                    let what = format!("{label}allow \"{}\" has bits set beyond its prefix length", text.value);
                    report.warning(text.place, what, format!("\"{prefix}\", which it is taken as"));
                }
                prefixes.push(Placed { value: prefix, place: text.place });
            }
            Err(error) => {
                wrong::<IpNet>(text, "allow", label, error, report);
            }
        }
    }
    prefixes
}
