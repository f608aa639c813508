//! The result, for people and for programs.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::apps::Apps;
use crate::control::Control;
use crate::machine::Machine;
use crate::rates::Rates;

/// Everything that was measured, as written to JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rates: Option<Rates>,
    pub(crate) apps: Option<Apps>,
    pub(crate) control: Option<Control>,
}

impl Report {
    /// What an earlier run has written.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no result of this bench", file.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        if let Some(rates) = &self.rates {
            writeln!(f, "\n{rates}")?;
        }
        if let Some(apps) = &self.apps {
            writeln!(f, "\n{apps}")?;
        }
        if let Some(control) = &self.control {
            writeln!(f, "\n{control}")?;
        }
        Ok(())
    }
}
