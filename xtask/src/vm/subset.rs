//! What runs where nobody asks for more: every test takes many times longer in an emulated machine, most of it for the
//! verifier, and a subject that depends on the kernel needs no more than one of its tests.

/// The targets, with the names of tests to run; all, where none is named.
pub(crate) const TARGETS: [(&str, &[&str]); 3] = [
    ("kernels", &[]),
    (
        "netns",
        &[
            "masquerade::hosts_behind_go_out::tc_two_armed",
            "traffic::ping::native_one_armed",
            "traffic::tcp::native_two_armed",
        ],
    ),
    (
        "progrun",
        &[
            "drops::the_way_out_is_asked_for_once_and_confirmed_by_the_kernel",
            "flows::a_connection_from_syn_to_fin",
            "fragments::fragments_wait_for_their_first",
            "icmp_errors::every_error_leads_back",
            "prefixes::every_protocol_both_ways",
            "programs::every_program_loads",
            "sweep::expired_flows_vanish_and_make_room_without_any_process",
            "two_cpus::no_flow_is_mixed_with_another_and_nothing_is_left_behind",
        ],
    ),
];

/// The names of tests to run of a target; all, where none is named.
pub(crate) fn of(target: &str) -> &'static [&'static str] {
    TARGETS.iter().find(|(name, _)| *name == target).map_or(&[], |(_, tests)| tests)
}
