//! What is wrong with a configuration: as much as can be read at once, each problem with its place and what to try.

use std::{fmt, sync::Arc};

/// Whether the configuration can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
    /// It can, and this part of it begins to work once the machine has what it names: `forwarder run` sees to that.
    Waiting,
}

/// A place in a file, counted from 1; columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file; none for rules given on the command line.
    pub path: Option<Arc<str>>,
    /// Where in the file; none where the file as a whole is meant, or no file.
    pub position: Option<Position>,
    /// What is wrong: no full stop, no newline.
    pub what: String,
    /// What to try next; may be empty.
    pub hint: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{path}:")?;
        }
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if self.path.is_some() || self.position.is_some() {
            f.write_str(" ")?;
        }
        f.write_str(match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
            Severity::Waiting => "waiting: ",
        })?;
        f.write_str(&self.what)?;
        if !self.hint.is_empty() {
            write!(f, "\n  try: {}", self.hint)?;
        }
        Ok(())
    }
}

/// Problems in the order of their places, errors and warnings together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Adds a problem.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Adds all of `others`.
    pub fn extend(&mut self, others: impl IntoIterator<Item = Diagnostic>) {
        self.0.extend(others);
    }

    /// Whether anything keeps the configuration from being used.
    pub fn has_errors(&self) -> bool {
        self.errors().next().is_some()
    }

    /// Only what keeps the configuration from being used.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter().filter(|one| one.severity == Severity::Error)
    }

    /// What the machine does not have yet, in words.
    pub fn waiting(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|one| one.severity == Severity::Waiting).map(|one| one.what.as_str())
    }

    /// All but what was waited for at the time: the machine is asked anew.
    #[must_use]
    pub fn of_the_file(&self) -> Self {
        Self(self.0.iter().filter(|one| one.severity != Severity::Waiting).cloned().collect())
    }

    /// Everything.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of the file; what has no place comes last.
    pub(super) fn sorted(mut self) -> Self {
        self.0.sort_by_key(|one| (one.position.is_none(), one.position, one.severity));
        self.0.dedup();
        self
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// How many problems are told. A mistake in a template is in every rule that was made from it.
const TOLD: usize = 50;

/// The first of them, errors before all others, and how many more there are.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut errors = self.errors().count().min(TOLD);
        let mut others = (TOLD - errors).min(self.0.len() - self.errors().count());
        let told = errors + others;
        let is_told = |one: &&Diagnostic| {
            let left = if one.severity == Severity::Error { &mut errors } else { &mut others };
            let is_told = *left > 0;
            *left -= usize::from(is_told);
            is_told
        };
        for (index, diagnostic) in self.0.iter().filter(is_told).enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        match self.0.len() - told {
            0 => Ok(()),
            1 => f.write_str("\nand 1 more problem"),
            more => write!(f, "\nand {more} more problems"),
        }
    }
}

impl std::error::Error for Diagnostics {}

#[cfg(test)]
mod tests {
    use super::{Diagnostic, Diagnostics, Severity, TOLD};

    fn of(severity: Severity, number: usize) -> impl Iterator<Item = Diagnostic> {
        (0..number).map(move |n| Diagnostic {
            severity,
            path: None,
            position: None,
            what: format!("problem {n}"),
            hint: String::new(),
        })
    }

    #[test]
    fn the_first_are_told_and_errors_before_warnings() {
        let told = |warnings: usize, errors: usize| {
            Diagnostics(of(Severity::Warning, warnings).chain(of(Severity::Error, errors)).collect()).to_string()
        };
        assert_eq!(told(0, 0), "");
        assert_eq!(told(1, 1), "warning: problem 0\nproblem 0");
        assert_eq!(told(0, TOLD).lines().count(), TOLD);
        let text = told(TOLD, 1);
        assert_eq!(text.lines().filter(|line| line.starts_with("warning: ")).count(), TOLD - 1, "{text}");
        assert!(text.ends_with("\nproblem 0\nand 1 more problem"), "{text}");
        let text = told(7, TOLD + 5);
        assert!(!text.contains("warning") && text.ends_with("\nproblem 49\nand 12 more problems"), "{text}");
    }
}
