use std::path::Path;

use super::{Series, newest, release_in, release_of};

const V6_1: Series = Series("6.1");
const V6_12: Series = Series("6.12");

#[test]
fn names_that_are_kernels_of_a_series() {
    let table = [
        // (package, of 6.1, of 6.12)
        ("linux-image-6.1.0-56-cloud-amd64", true, false),
        ("linux-image-6.12.117+deb12-cloud-amd64", false, true),
        // Metapackages hold no kernel.
        ("linux-image-6.12-cloud-amd64", false, false),
        ("linux-image-cloud-amd64", false, false),
        ("linux-image-6.1.0-56-cloud-amd64-dbg", false, false),
        ("linux-image-6.1.0-56-cloud-amd64-unsigned", false, false),
        ("linux-image-6.1.0-56-amd64", false, false),
        ("linux-image-6.1.0-56-rt-amd64", false, false),
        ("linux-image-6.1.0-56-cloud-arm64", false, false),
        ("linux-image-6.12.1-rc3-cloud-amd64", false, false),
        ("linux-image-6.10.11-cloud-amd64", false, false),
        ("linux-headers-6.1.0-56-cloud-amd64", false, false),
    ];
    for (package, is_6_1, is_6_12) in table {
        assert_eq!(release_in(package, V6_1).is_some(), is_6_1, "{package}");
        assert_eq!(release_in(package, V6_12).is_some(), is_6_12, "{package}");
    }
}

#[test]
fn the_newest_is_chosen_by_number() {
    let packages = [
        "linux-image-6.1.0-9-cloud-amd64",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-6.1.0-47-cloud-amd64",
        "linux-image-6.1.0-99-cloud-amd64-unsigned",
        "linux-image-6.12.107+deb12-cloud-amd64",
        "linux-image-6.12.95+deb12-cloud-amd64",
        "linux-image-6.12-cloud-amd64",
    ];
    assert_eq!(newest(packages, V6_1), Some("linux-image-6.1.0-56-cloud-amd64"));
    assert_eq!(newest(packages, V6_12), Some("linux-image-6.12.107+deb12-cloud-amd64"));
    assert_eq!(newest(packages, Series("6.6")), None);
}

#[test]
fn release_from_the_downloaded_file() {
    let table = [
        ("/x/linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb", V6_1, Some("6.1.0-56-cloud-amd64")),
        (
            "linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1~deb12u1_amd64.deb",
            V6_12,
            Some("6.12.117+deb12-cloud-amd64"),
        ),
        (
            "linux-image-6.12.117%2bdeb12-cloud-amd64_6.12.117-1%7edeb12u1_amd64.deb",
            V6_12,
            Some("6.12.117+deb12-cloud-amd64"),
        ),
        ("linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb", V6_12, None),
        ("lock", V6_1, None),
    ];
    for (file, series, expected) in table {
        assert_eq!(release_of(Path::new(file), series).ok().as_deref(), expected, "{file}");
    }
}
