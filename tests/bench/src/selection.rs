//! Which rows are wanted.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    All,
    /// The few that a quick answer needs.
    Quick,
    /// Those whose name contains one of these words.
    Words(Vec<String>),
    /// Those of these names.
    Names(Vec<String>),
}

impl Selection {
    /// What the options say: words also choose among the rows that are not quick.
    pub(crate) fn new(words: &[String], quick: bool) -> Self {
        match words {
            [] if quick => Self::Quick,
            [] => Self::All,
            words => Self::Words(words.to_vec()),
        }
    }

    /// Whether a row is wanted; `quick` are the names of the quick ones of its kind.
    pub(crate) fn wants(&self, name: &str, quick: &[&str]) -> bool {
        match self {
            Self::All => true,
            Self::Quick => quick.contains(&name),
            Self::Words(words) => words.iter().any(|word| name.contains(word.as_str())),
            Self::Names(names) => names.iter().any(|one| one == name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
        for (selection, wanted) in [
            (Selection::new(&[], false), [true, true]),
            (Selection::new(&[], true), [true, false]),
            (Selection::new(&words(&["1k"]), true), [true, true]),
            (Selection::new(&words(&["b/1k/"]), false), [false, true]),
            (Selection::Names(words(&["a/1k"])), [true, false]),
        ] {
            assert_eq!(["a/1k", "b/1k/new"].map(|name| selection.wants(name, &["a/1k"])), wanted, "{selection:?}");
        }
    }
}
