#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use super::*;
use crate::{
    bpf::attach::TcAttachment,
    config::{Config, Mode},
    state::AttachedInterface,
};

fn directory(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("forwarder-state-{}-{name}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn every_directory_of_pins_has_a_state_file_of_its_own() {
    let names: Vec<String> = ["/sys/fs/bpf/forwarder", "/sys/fs/bpf/a/b", "/sys/fs/bpf/a_b", "/mnt/bpf/forwarder"]
        .map(|pins| name(Path::new(pins)))
        .into();
    assert_eq!(names, ["forwarder", "a_b", "a__b", "mnt_bpf_forwarder"]);
}

#[test]
fn a_state_comes_back_as_it_was_written() {
    let directory = directory("round-trip");
    let file = StateFile::in_directory(&directory, Path::new("/sys/fs/bpf/x"));
    assert!(file.read().unwrap().is_none());
    let mut state = State::new(Path::new("/sys/fs/bpf/x"), Config::default()).unwrap();
    state.counters.insert("web".into(), 3);
    state.interfaces.push(AttachedInterface {
        name: "eth0".into(),
        index: 2,
        mac: Some([2, 0, 0, 0, 0, 1]),
        slot: 0,
        mode: Mode::Tc,
        why: "veth".into(),
        tc: TcAttachment::Clsact { added_qdisc: true },
        egress: None,
        vlan_stripping_off: false,
        xdp_out: false,
    });
    file.write(&state).unwrap();
    let read = file.read().unwrap().unwrap();
    assert_eq!(read.counters, state.counters);
    assert_eq!(read.interfaces, state.interfaces);
    assert!(read.is_here().unwrap());
    file.remove().unwrap();
    assert!(file.read().unwrap().is_none());
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_state_that_is_the_same_is_not_written_again() {
    let directory = directory("update");
    let file = StateFile::in_directory(&directory, Path::new("/sys/fs/bpf/x"));
    let inode = || fs::metadata(file.path()).unwrap().ino();
    let mut state = State::new(Path::new("/sys/fs/bpf/x"), Config::default()).unwrap();
    file.update(&state).unwrap();
    let first = inode();
    // Kept, so that its number is not given to the next.
    let _kept = File::open(file.path()).unwrap();
    file.update(&state).unwrap();
    assert_eq!(inode(), first);
    state.counters.insert("web".into(), 3);
    file.update(&state).unwrap();
    assert_ne!(inode(), first);
    assert_eq!(file.read().unwrap(), Some(state));
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_state_of_another_format_is_refused_with_a_way_out() {
    let directory = directory("format");
    let file = StateFile::in_directory(&directory, Path::new("/sys/fs/bpf/x"));
    for other in [r#"{"format": 99}"#, r#"{"format": "1"}"#, "{}"] {
        fs::write(file.path(), other).unwrap();
        let error = format!("{:#}", file.read().unwrap_err());
        assert!(error.contains("another version") && error.contains("unload"), "{other}: {error}");
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_file_that_cannot_be_replaced_is_left_alone_and_nothing_is_left_beside_it() {
    let directory = directory("atomic");
    // A directory in its place: the rename fails.
    fs::create_dir(directory.join("target")).unwrap();
    fs::write(directory.join("target/inside"), "").unwrap();
    write_atomically(&directory.join("target"), b"text", 0o600).unwrap_err();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_lock_keeps_others_out_and_leaves_nothing_behind() {
    let directory = directory("lock");
    let file = StateFile::in_directory(&directory, Path::new("/sys/fs/bpf/x"));
    let lock = file.lock().unwrap();
    let again = OpenOptions::new().write(true).open(file.path().with_extension("lock")).unwrap();
    assert!(matches!(Flock::lock(again, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK))));
    drop(lock);
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    drop(file.lock().unwrap());
    fs::remove_dir_all(directory).unwrap();
}
