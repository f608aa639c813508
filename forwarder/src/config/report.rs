//! Collects problems on the way from text to map contents.

use std::sync::Arc;

use super::diagnostics::{Diagnostic, Diagnostics, Position, Severity};
use crate::machine::Machine;

/// The problems found so far in one file, or in a rule from the command line.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    path: Option<Arc<str>>,
    found: Diagnostics,
}

impl Report {
    /// Nothing found yet in this file.
    pub(super) fn new(path: Option<Arc<str>>) -> Self {
        Self { path, found: Diagnostics::default() }
    }

    fn push(&mut self, severity: Severity, position: Option<Position>, what: String, hint: String) {
        self.found.push(Diagnostic { severity, path: self.path.clone(), position, what, hint });
    }

    /// Something that keeps the configuration from being used.
    pub(super) fn error(&mut self, place: Option<Position>, what: impl Into<String>, hint: impl Into<String>) {
        self.push(Severity::Error, place, what.into(), hint.into());
    }

    /// Something that is probably not meant.
    pub(super) fn warning(&mut self, place: Option<Position>, what: impl Into<String>, hint: impl Into<String>) {
        self.push(Severity::Warning, place, what.into(), hint.into());
    }

    /// Something that the machine does not have: an error, unless somebody waits for it.
    pub(super) fn missing(
        &mut self,
        machine: &Machine,
        place: Option<Position>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        if machine.followed {
            self.push(Severity::Waiting, place, what.into(), String::new());
        } else {
            self.error(place, what, hint);
        }
    }

    /// Whether anything keeps the configuration from being used.
    pub(super) fn has_errors(&self) -> bool {
        self.found.has_errors()
    }

    /// Takes over what was found elsewhere.
    pub(super) fn include(&mut self, others: Diagnostics) {
        self.found.extend(others);
    }

    /// Everything found, if there are errors; else the warnings.
    pub(super) fn finish(self) -> Result<Diagnostics, Diagnostics> {
        let found = self.found.sorted();
        if found.has_errors() { Err(found) } else { Ok(found) }
    }
}

/// "on line 3", or nothing where there are no lines.
pub(super) fn on_line(place: Option<Position>) -> String {
    place.map_or_else(String::new, |place| format!(" on line {}", place.line))
}
