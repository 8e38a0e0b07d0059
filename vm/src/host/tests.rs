//! Decisions about packages, space and devices.

use super::*;

#[test]
fn families_are_told_by_os_release() {
    let family = |text| Family::of(text);
    assert_eq!(family("NAME=x\nID=debian\n"), Family::Debian);
    assert_eq!(
        family("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"),
        Family::Debian
    );
    assert_eq!(
        family("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n"),
        Family::Fedora
    );
    assert_eq!(
        family("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n"),
        Family::Suse
    );
    assert_eq!(family("ID=arch\n"), Family::Arch);
    assert_eq!(family("VERSION_ID=debian\n"), Family::Other);
}

#[test]
fn the_command_to_type_names_each_family_s_packages() {
    let needs = [TO_BUILD_IMAGES[3], TO_BUILD_IMAGES[2], TO_BUILD_IMAGES[2]];
    let command = |family: Family, root| family.install_command(&needs, root);
    assert_eq!(
        command(Family::Debian, false),
        "sudo apt-get update && sudo apt-get install --no-install-recommends debian-archive-keyring xz-utils"
    );
    assert_eq!(
        command(Family::Fedora, true),
        "dnf install debian-keyring xz"
    );
    assert_eq!(
        command(Family::Arch, false),
        "sudo pacman -S debian-archive-keyring xz"
    );
}

#[test]
fn missing_things_are_named_with_their_command() {
    let error = HostError::Missing {
        what: vec!["mmdebstrap".to_owned(), "xz".to_owned()],
        command: "dnf install mmdebstrap xz".to_owned(),
    };
    assert_eq!(
        error.to_string(),
        "missing on this host: mmdebstrap, xz. Install with:\n    dnf install mmdebstrap xz"
    );
    let absent = need("no-such-program", "nothing");
    assert_eq!(
        missing(&[need("sh", "dash"), absent, need("/no/such/file", "nothing")])[0],
        absent
    );
}

#[test]
fn too_little_space_is_an_error_of_its_own() {
    let error = require_space(Path::new("/tmp/not/there/yet"), u64::MAX).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(HostError::NoSpace { .. })),
        "{error}"
    );
    assert!(require_space(Path::new("/"), 1).is_ok());
}

#[test]
fn a_full_disk_is_recognised_in_errors_and_in_what_programs_say() {
    let here = Path::new("/");
    let full = |error: anyhow::Error| {
        name_full_disk(error, here, "testing")
            .downcast_ref::<HostError>()
            .is_some()
    };
    assert!(full(
        anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull)).context("cannot write x")
    ));
    let script = "echo 'tar: x: Cannot write: No space left on device' >&2; exit 2";
    let said = Cmd::new("sh")
        .args(["-c", script])
        .run(Duration::from_secs(10))
        .unwrap_err();
    assert!(full(said.into()));
    assert!(!full(anyhow::anyhow!("something else")));
}

#[test]
fn package_lists_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    assert!(!has_package_lists(dir.path()));
    fs::write(dir.path().join("lock"), "").unwrap();
    assert!(!has_package_lists(dir.path()));
    fs::write(dir.path().join("x_main_binary-amd64_Packages.lz4"), "").unwrap();
    assert!(has_package_lists(dir.path()));
}

#[test]
fn this_host_has_facts() {
    let facts = facts(Path::new("/tmp")).unwrap();
    assert!(
        facts.cores > 0 && facts.memory_available > 0 && facts.disk_free > 0,
        "{facts:?}"
    );
    assert_eq!(
        memory_available("MemFree: 1 kB\nMemAvailable:      12 kB\n"),
        Some(12 * 1024)
    );
    assert_eq!(device(Path::new("/dev/no-such-device")), Device::Absent);
}
