//! Lines that are not a plain Ethernet cable: without link header (tun, as WireGuard and PPP are), tap, a bridge, jumbo
//! frames; in every direction, by TC. (VLANs, bonds and WireGuard are in `tests/kernels`.)

use crate::lines::Line;

fn forwards(name: &str, client: Line, home: Line) {
    crate::lines::forwards(name, client, home);
}

#[test]
fn from_a_line_without_link_header() {
    forwards("l3l2", Line::Tun, Line::Ethernet(1500));
}

#[test]
fn to_a_line_without_link_header() {
    forwards("l2l3", Line::Ethernet(1500), Line::Tun);
}

#[test]
fn between_lines_without_link_header() {
    forwards("l3l3", Line::Tun, Line::Tun);
}

#[test]
fn tap_devices() {
    forwards("tap", Line::Tap, Line::Tap);
}

#[test]
fn bridges() {
    forwards("bridge", Line::Bridge, Line::Bridge);
}

#[test]
fn jumbo_frames() {
    forwards("jumbo", Line::Ethernet(9000), Line::Ethernet(9000));
}
