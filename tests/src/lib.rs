//! Nothing to use: the tests stand beside it. `progrun` runs packets through the loaded programs with
//! `BPF_PROG_TEST_RUN`; `netns` runs the real binary between network namespaces with real clients and servers.
