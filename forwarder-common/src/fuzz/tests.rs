//! The targets on inputs that are always the same, bounded: what `cargo test` has time for.

use super::*;

const SEED: u64 = 1;

/// Runs a target, and says which of these outcomes it never reached.
#[track_caller]
fn reaches(target: Target, runs: u32, outcomes: &[Outcome]) {
    let seen = run(target, SEED, runs);
    let missing: Vec<_> = outcomes.iter().filter(|outcome| !seen.contains_key(outcome)).collect();
    assert!(missing.is_empty(), "never seen: {missing:?}; seen: {seen:?}");
}

#[test]
fn any_packets() {
    use Outcome::*;
    let outcomes = [
        Forwarded,
        ForwardedByNeighbour,
        NotOurs,
        Malformed,
        ToTc,
        ToSelf,
        Stray,
        DropTtl,
        DropNoFlow,
        DropNoRoute,
        DropTooBig,
        DropFiltered,
        DropStray,
    ];
    reaches(packets, 8_000, &outcomes);
}

#[test]
fn any_errors() {
    use Outcome::*;
    reaches(
        errors,
        8_000,
        &[Forwarded, ForwardedByNeighbour, IcmpOther, IcmpStray, IcmpBadChecksum, Malformed, DropRedirect],
    );
}

#[test]
fn any_fragments() {
    use Outcome::*;
    reaches(fragments, 4_000, &[Forwarded, NotOurs, Fragment, Malformed, DropFragment]);
}

/// What libFuzzer found, by target; each was a bug of the core, or of what a target asserted.
#[test]
fn what_was_found_once() {
    let found: [(Target, &[u8]); 1] = [(errors, include_bytes!("found/errors-1"))];
    for (target, bytes) in found {
        target(bytes);
    }
}
