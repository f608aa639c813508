//! Writes configurations.

use std::fmt::Display;

/// A rule. `listen` is one listen, or an array as it is written in the file; `more` are further keys.
pub(crate) fn rule(name: &str, listen: impl Display, to: impl Display, more: &str) -> String {
    let listen = listen.to_string();
    let listen = if listen.starts_with("[\"") { listen } else { format!("{listen:?}") };
    format!("[[forward]]\nname = {name:?}\nlisten = {listen}\nto = \"{to}\"\n{more}\n\n")
}

/// The key for the source that the backend sees.
pub(crate) fn source(value: impl Display) -> String {
    format!("source = \"{value}\"")
}

/// Hosts that go out by an interface. `from` is an array as it is written in the file; `more` are further keys.
pub(crate) fn masquerade(name: &str, from: impl Display, out: &str, more: &str) -> String {
    format!("[[masquerade]]\nname = {name:?}\nfrom = {from}\nout = {out:?}\n{more}\n\n")
}
