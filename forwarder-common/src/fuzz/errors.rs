//! ICMP errors about packets that were forwarded, quoted in part, damaged, with anything behind.

use std::{net::IpAddr, vec::Vec};

use arbitrary::{Arbitrary, Result, Unstructured};

use super::{
    Seen, frame,
    input::{self, Damage, Described, Machine, address},
};
use crate::{
    parse::{Ipv4, Ipv6},
    test_packet::{NETWORK, icmp_error},
    test_world::{Hook, TestFamily},
    verdict::{Kind, Outcome},
};

/// The most errors of one input.
const MOST: usize = 16;

/// An error about the packet that was sent on last.
#[derive(Arbitrary, Debug)]
struct Told {
    kind: u8,
    code: u8,
    rest: u32,
    /// Who says so; mostly the packet's destination.
    from: u8,
    /// Who is told; mostly the packet's source.
    to: u8,
    quoted: u8,
    tail: u8,
    /// Of what is quoted; the message's checksum covers it.
    quoted_damage: Damage,
    /// Of the whole frame.
    damage: Damage,
    xdp: u8,
}

/// An error that is passed is as it was; one that is translated is about the packet that came, has the right checksum, and
/// what it quotes is as right as it was.
pub fn errors(bytes: &[u8]) -> Seen {
    input::of_a_family(bytes, [of::<Ipv4>, of::<Ipv6>])
}

fn of<F: TestFamily>(bytes: &mut Unstructured<'_>) -> Result<Seen> {
    let world = Machine::arbitrary(bytes)?.world::<F>();
    let mut seen = Seen::new();
    let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
    for _ in 0..MOST {
        if bytes.is_empty() {
            break;
        }
        if last.is_none() || u8::arbitrary(bytes)? < 64 {
            let came = Described::arbitrary(bytes)?.packet::<F>().frame();
            let (verdict, left) = world.process_bytes(Hook::Tc, came.clone());
            if verdict.outcome.kind() == Kind::Forward {
                last = Some((came, left));
            }
        }
        let Some((came, left)) = &last else { continue };
        let outcome = check::<F>(&world, &Told::arbitrary(bytes)?, came, left);
        *seen.entry(outcome).or_default() += 1;
    }
    Ok(seen)
}

/// Runs an error about a packet that came as `came` and left as `left`.
fn check<F: TestFamily>(world: &crate::test_world::World<F>, told: &Told, came: &[u8], left: &[u8]) -> Outcome {
    let Some((src, dst)) = frame::ends(left) else { return Outcome::NotOurs };
    let party = |number: u8, usual: IpAddr| if number < 192 { usual } else { address::<F>(number) };
    let mut quoted = left[NETWORK..].to_vec();
    told.quoted_damage.apply(&mut quoted, 0);
    if told.quoted < 200 {
        quoted.truncate(20 + usize::from(told.quoted));
    }
    let ports = frame::layout(&left[NETWORK..]).is_some_and(|layout| quoted.len() >= layout.transport + 8);
    quoted.extend((0..told.tail).filter(|_| told.tail.is_multiple_of(4)));
    let kinds: [u8; 4] = if src.is_ipv4() { [3, 11, 12, 5] } else { [1, 2, 3, 4] };
    let kind = if told.kind < 224 { kinds[usize::from(told.kind % 4)] } else { told.kind };
    let ends = (party(told.from, dst.ip()), party(told.to, src.ip()));
    let mut error = icmp_error(ends.0, ends.1, (kind, told.code, told.rest), &quoted, 0);
    told.damage.apply(&mut error, NETWORK);
    let hook = input::hook(told.xdp);
    let (verdict, bytes) = world.process_bytes(hook, error.clone());
    if verdict.outcome.kind() != Kind::Forward {
        assert_eq!(error, bytes, "{:?} and changed", verdict.outcome);
        return verdict.outcome;
    }
    frame::assert_translated(&error, &bytes);
    let (client, listen) = frame::ends(came).unwrap();
    // About what left by a line as it came, too, a rule may have something to say.
    // Nor is it translated if nothing says so, but a line takes it.
    let translated = frame::embedded_ends(&error) != frame::embedded_ends(&bytes);
    let plain = translated && input::is_plain::<F>(client.ip(), listen.ip());
    if plain
        && ports
        && ends == (dst.ip(), src.ip())
        && told.damage.is_none()
        && told.quoted_damage.is_none()
        && (client, listen) != (src, dst)
    {
        let embedded = frame::embedded_ends(&bytes);
        assert!(embedded.is_none_or(|ends| ends == (client, listen)), "about {embedded:?}, not {client} to {listen}");
        assert_eq!(frame::ends(&bytes).unwrap().1.ip(), client.ip(), "not told to whom it concerns");
    }
    verdict.outcome
}
