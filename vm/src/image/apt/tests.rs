//! Parsing what apt says and how it is configured.

use super::*;

#[test]
fn the_debian_archive_is_told_from_others() {
    let listed = "https://x.test/node/|nodistro|main|. nodistro\n\
        https://docker.test/linux/debian/|bookworm|stable|Docker\n\
        https://pg.test/pub/repos/apt/|bookworm-pgdg|main|apt.postgresql.org\n\
        http://m.test/debian-security/|bookworm-security|main|Debian\n\
        http://m.test/debian/|bookworm|main|Debian\n";
    let mirrors = |main: &str, security: &str| Some((main.to_owned(), security.to_owned()));
    assert_eq!(
        parse_targets(listed),
        mirrors("http://m.test/debian", "http://m.test/debian-security")
    );
    // Before the first `apt-get update` no origin is known.
    let fresh = "https://x.test/node/|nodistro|main|$(ORIGIN)\nhttp://m.test/debian/|trixie|main|$(ORIGIN)\n";
    assert_eq!(
        parse_targets(fresh),
        mirrors("http://m.test/debian", "http://m.test/debian-security")
    );
    assert_eq!(
        parse_targets("http://a.test/ubuntu/|noble|main|Ubuntu\n"),
        None
    );
    assert_eq!(parse_targets(""), None);
}

#[test]
fn what_apt_cannot_find_is_named() {
    let stderr = "Reading package lists...\n\
        Package dash is not available, but is referred to by another package.\n\
        E: Version '99' for 'postgresql' was not found\n\
        E: Unable to locate package nosuchpkg\n\
        E: Unable to locate package nosuchpkg\n\
        E: Package 'awk' has no installation candidate\n\
        E: Release 'sid' for 'dash' was not found\n\
        E: mmdebstrap failed to run\n";
    let version = |package: &str, version: &str| Absent::Version {
        package: package.into(),
        version: version.into(),
    };
    let expected = [
        version("postgresql", "99"),
        Absent::Package("nosuchpkg".into()),
        Absent::Package("awk".into()),
        version("dash", "sid"),
    ];
    assert_eq!(parse_absent(stderr), expected);
    assert!(parse_absent("E: Failed to fetch http://m.test  Could not connect\n").is_empty());
}

#[test]
fn deb_names_carry_epochs() {
    let name = |stem| parse_deb_name(stem);
    assert_eq!(
        name("passwd_1%3a4.13+dfsg1-1_amd64"),
        Some(("passwd".into(), "1:4.13+dfsg1-1".into()))
    );
    assert_eq!(
        name("tzdata_2026f-0+deb12u1_all"),
        Some(("tzdata".into(), "2026f-0+deb12u1".into()))
    );
    assert_eq!(name("partial"), None);
}

#[test]
fn progress_is_read_from_what_apt_says() {
    let mut follow = Follow::default();
    assert_eq!(
        follow.line("Get:3 http://m.test/debian bookworm/main amd64 Packages [8,790 kB]"),
        None
    );
    let total = 1_000_000;
    assert_eq!(
        follow.line("Need to get 1000 kB of archives."),
        Some(Progress::Downloading { done: 0, total })
    );
    let get = "Get:1 http://m.test/debian bookworm/main amd64 libc6 amd64 2.36-9 [37.6 kB]";
    assert_eq!(
        follow.line(get),
        Some(Progress::Downloading {
            done: 37_600,
            total
        })
    );
    let get = "Get:2 http://m.test/debian bookworm/main amd64 big amd64 1 [2 MB]";
    assert_eq!(
        follow.line(get),
        Some(Progress::Downloading { done: total, total })
    );
    assert_eq!(
        follow.line("I: extracting archives..."),
        Some(Progress::Extracting)
    );
}
