//! One pass: what runs is made to fit the machine as it is now, by the same plan as `reload`, under the same lock.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    interfaces::{self, Wanting},
    news::Stale,
    say,
    uplinks::{Probes, plan},
};
use crate::{
    bpf::{self, tables::Tables},
    cli::Reload,
    commands::{
        Instance, describe_error, guard,
        load::mode_in_words,
        reload::{self, Applied},
    },
    config,
    machine::{
        Machine,
        netlink::{Link, Netlink},
    },
    reconcile::Changes,
    serve::{self, fallback_route},
    state::{Lock, State, StateFile, WayOutState, uplinks::probed_down},
};

/// Follows the machine for one instance.
pub(super) struct Follower {
    pins: PathBuf,
    file: StateFile,
    /// Interfaces that were not there when one last looked.
    absent: BTreeSet<String>,
    /// What is wrong, so that it is said once and not with every pass.
    troubles: BTreeSet<String>,
    /// What is waited for.
    waiting: Vec<String>,
    /// Of the lines.
    probes: Probes,
}

/// What became of the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It runs; in words.
    Running(String),
    /// Another command has unloaded it.
    Unloaded,
}

impl Follower {
    pub(super) fn new(pins: &Path) -> Self {
        Self {
            pins: pins.to_owned(),
            file: StateFile::of(pins),
            absent: BTreeSet::new(),
            troubles: BTreeSet::new(),
            waiting: Vec::new(),
            probes: Probes::default(),
        }
    }

    /// What has been found out about the lines before.
    pub(super) fn knows_of(&mut self, state: &State) {
        self.probes = Probes::new(probed_down(&state.uplinks));
    }

    /// Waits until a line goes down or comes up by its probes.
    pub(super) async fn line_changes(&mut self) {
        self.probes.next().await;
    }

    /// What has been said already.
    pub(super) fn has_said(&mut self, state: &State) {
        self.waiting.clone_from(&state.waiting);
        self.absent = state.absent_interfaces().map(str::to_owned).collect();
    }

    /// Waits until no command changes the instance; then none does as long as the lock is held. None: it is not loaded.
    async fn open(&self) -> Result<Option<(Lock, Instance)>> {
        let path = self.pins.clone();
        let waiting = tokio::task::spawn_blocking(move || StateFile::of(&path).lock());
        let lock = waiting.await.context("the wait for other commands was cut short")??;
        if self.file.read()?.is_none() && !self.pins.exists() {
            return Ok(None);
        }
        // What commands have changed since is in the state: read anew each time.
        Ok(Some((lock, Instance::open(&self.pins)?)))
    }

    /// Whether there is anything to follow.
    pub(super) fn is_loaded(&self) -> bool {
        self.pins.exists()
    }

    /// Brings what is stale up to date.
    pub(super) async fn pass(&mut self, stale: Stale) -> Result<Found> {
        let Some((_lock, mut instance)) = self.open().await? else { return Ok(Found::Unloaded) };
        if stale.next_hops {
            Tables::open(&self.pins)?.raise_epoch()?;
        }
        if stale.rules {
            let troubles = self.follow(&mut instance).await?;
            for trouble in troubles.difference(&self.troubles) {
                say(trouble);
            }
            self.troubles = troubles;
        }
        Ok(Found::Running(self.describe(&instance)))
    }

    /// Reads the configuration file anew. What is wrong with it is the error; the old one stays in force then.
    pub(super) async fn reload(&mut self, options: &Reload) -> Result<Found> {
        let Some((_lock, mut instance)) = self.open().await? else { return Ok(Found::Unloaded) };
        let before = instance.state.clone();
        let reloaded = reload::reload(&mut instance, options).await?;
        let waited_for = |warning: &&String| !warning.contains("waiting: ");
        reloaded.warnings.iter().filter(waited_for).for_each(say);
        say(describe_changes(&before, &instance.state, &reloaded.applied)
            .unwrap_or_else(|| "no rule changed".to_owned()));
        self.tell_waiting(&instance);
        Ok(Found::Running(self.describe(&instance)))
    }

    /// What keeps the rules or an interface from being as they should is in the result.
    async fn follow(&mut self, instance: &mut Instance) -> Result<BTreeSet<String>> {
        let mut troubles = BTreeSet::new();
        let backends = instance.state.config.backends();
        let netlink = Netlink::connect()?;
        let (machine, links) = netlink.machine(&backends).await?;
        let machine = Machine { followed: true, down: self.probes.down().clone(), ..machine };
        self.probes.follow(plan::of(&instance.state.config, &machine));
        self.tell_absent(instance, &links);
        // Before the rules lead there, and before XDP does.
        write_interfaces(instance, &links)?;
        match config::compile(&instance.state.config, &machine) {
            Ok(compiled) => {
                let config = instance.state.config.clone();
                let before = instance.state.clone();
                let applied = reload::apply(instance, config, &compiled, &machine)?;
                tell_lines(&before, &instance.state);
                for one in instance.state.elsewhere.iter().filter(|one| !before.elsewhere.contains(one)) {
                    say(format!("{}: not served; what this machine itself sends by it is steered", one.name));
                }
                if let Some(changes) = describe_changes(&before, &instance.state, &applied) {
                    say(changes);
                }
                let added = instance.state.fallback_routes.clone();
                match fallback_route::keep(&netlink, &compiled, &machine, &mut instance.state.fallback_routes).await {
                    Ok(sentences) => sentences.iter().for_each(say),
                    Err(error) => drop(troubles.insert(describe_error(&error))),
                }
                if instance.state.fallback_routes != added {
                    instance.file.write(&instance.state)?;
                }
                troubles.extend(guard::lines::obstacles(&compiled, &machine));
            }
            Err(problems) => {
                troubles.insert(format!(
                    "the rules stay as they were, for they do not fit the machine any more: {problems}"
                ));
            }
        }
        self.tell_waiting(instance);
        for wanting in
            interfaces::wanting(&instance.state.config.interfaces, &instance.state.interfaces.clone(), &links)
        {
            if let Err(error) = attach(instance, &wanting) {
                let name = &wanting.link.interface.name;
                troubles.insert(format!("{name} {}, but: {}", wanting.why, describe_error(&error)));
            }
        }
        if write_interfaces(instance, &links)? {
            Tables::open(&self.pins)?.raise_epoch()?;
        }
        Ok(troubles)
    }

    fn tell_absent(&mut self, instance: &Instance, links: &[Link]) {
        let absent = interfaces::absent(&instance.state.config.interfaces, &instance.state.interfaces, links);
        for name in absent.difference(&self.absent) {
            say(format!("{name} is not there; waiting for it"));
        }
        self.absent = absent;
    }

    fn tell_waiting(&mut self, instance: &Instance) {
        let waiting = &instance.state.waiting;
        for what in waiting.iter().filter(|what| !self.waiting.contains(what)) {
            say(format!("waiting: {what}"));
        }
        for what in self.waiting.iter().filter(|what| !waiting.contains(what)) {
            say(format!("not waiting any more: {what}"));
        }
        self.waiting.clone_from(waiting);
    }

    fn describe(&self, instance: &Instance) -> String {
        let state = &instance.state;
        let (rules, interfaces) = (state.names().count(), state.config.interfaces.len());
        let waiting = match state.waiting.len() + self.absent.len() {
            0 => String::new(),
            number => format!(", {number} waiting"),
        };
        format!("{} on {}{waiting}", count(rules, "rule"), count(interfaces, "interface"))
    }
}

/// Attaches the programs of an interface, and remembers it.
fn attach(instance: &mut Instance, wanting: &Wanting<'_>) -> Result<()> {
    let Wanting { slot, link, before, why } = *wanting;
    let attached = serve::attach_anew(&instance.pins, &instance.state, slot, link, before)?;
    say(format!(
        "{} {why} (index {}): {}, {}",
        attached.name,
        attached.index,
        mode_in_words(attached.mode),
        attached.why
    ));
    let interfaces = &mut instance.state.interfaces;
    interfaces.retain(|one| one.slot != slot);
    interfaces.push(attached);
    interfaces.sort_by_key(|one| one.slot);
    instance.file.write(&instance.state)
}

/// Tells the programs what kinds of interfaces there are now; whether that is news.
fn write_interfaces(instance: &Instance, links: &[Link]) -> Result<bool> {
    let headerless = links.iter().filter(|link| !link.interface.has_link_header).map(|link| link.interface.index);
    let is_there = |index: u32| links.iter().any(|link| link.interface.index == index);
    let served = instance.state.interfaces.iter().filter(|one| is_there(one.index));
    let served = served.map(|one| (one.index, one.seen_by_programs()));
    bpf::interfaces::write(&instance.pins, &headerless.collect::<Vec<_>>(), served)
}

/// Says which lines went down and which came up.
fn tell_lines(before: &State, after: &State) {
    for uplink in &after.uplinks {
        let was_up = before.uplinks.iter().find(|other| other.name == uplink.name).is_none_or(|other| other.up);
        match &uplink.why {
            Some(why) if was_up => say(format!("uplink {} is down: {why}", uplink.name)),
            None if !was_up => say(format!("uplink {} is up", uplink.name)),
            _ => {}
        }
    }
}

/// One line on what changed; none if nothing did.
fn describe_changes(before: &State, after: &State, applied: &Applied) -> Option<String> {
    let Applied { changes: Changes { added, removed, changed, unchanged }, any, lost, ended } = applied;
    if !any && *ended == 0 {
        return None;
    }
    let mut parts: Vec<String> = added.iter().chain(changed).map(|name| describe_rule(name, before, after)).collect();
    parts.extend(removed.iter().map(|(name, _)| format!("{name}: removed")));
    if *ended > 0 && lost.is_empty() {
        parts.push(format!("{} ended", count(*ended, "flow")));
    } else if !lost.is_empty() {
        let lost: Vec<String> = lost.iter().map(ToString::to_string).collect();
        parts.push(format!("{} of {} ended", count(*ended, "flow"), lost.join(", ")));
    }
    parts.push(format!("{} unchanged", count(unchanged.len(), "rule")));
    Some(parts.join("; "))
}

/// What became of a rule that is new or not as it was.
fn describe_rule(name: &str, before: &State, after: &State) -> String {
    let listens = |state: &State| {
        let here = state.rules.iter().find(|rule| rule.name == name).map(|rule| rule.listen.join(", "));
        let ways = || state.masquerades.iter().find(|masquerade| masquerade.name == name);
        let address = |way: &WayOutState| format!("{} as {}", way.from, way.address);
        here.or_else(|| ways().map(|one| one.ways.iter().map(address).collect::<Vec<_>>().join(", ")))
    };
    match (listens(before), listens(after)) {
        (Some(before), Some(after)) if before != after => {
            let or_nothing = |text: String| if text.is_empty() { "nothing".to_owned() } else { text };
            format!("{name}: {} in place of {}", or_nothing(after), or_nothing(before))
        }
        (None, Some(after)) => format!("{name}: added, {after}"),
        _ => format!("{name}: changed"),
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}
