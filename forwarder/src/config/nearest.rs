//! What a mistyped word was probably meant to be.

/// How different, at most, a word may be from the one that is suggested: half of its letters, and never all of them.
fn limit(word: &str) -> usize {
    (word.chars().count() / 2).max(1)
}

/// The candidate closest to `word`, if one is close enough to be meant.
pub(super) fn near<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= limit(&word).min(limit(candidate).max(2)))
        .map(|(_, candidate)| candidate)
}
