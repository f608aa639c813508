//! Changes to the text of a configuration file that keep its comments and its layout.

use super::{diagnostics::Diagnostics, rule::TypedForward};

/// The text with one more `[[forward]]` at its end.
pub fn add_forward(_text: &str, _rule: &TypedForward) -> Result<String, Diagnostics> {
    todo!()
}

/// The text without the `[[forward]]` of this name; none if it has none.
pub fn remove_forward(_text: &str, _name: &str) -> Result<Option<String>, Diagnostics> {
    todo!()
}
