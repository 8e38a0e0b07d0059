//! Each mistake in a recipe, with the message it gets.

use super::*;

const GOOD: &str = r#"about = "Test"
components = ["main"]
packages = ["linux-image-amd64", "postgresql"]

[[source]]
suite = "trixie"

[[source]]
suite = "trixie-security"
archive = "security"

[[source]]
suite = "trixie-backports"
packages = ["linux-image-amd64"]

[postgres]
bin = "/usr/lib/postgresql/17/bin"

[modules]
early = ["virtio_blk"]
late = ["xfs"]

[disk]
headroom = "64 MiB"
"#;

fn parse(text: &str) -> Result<Recipe, Problem> {
    Recipe::parse(
        ImageName::new("test").unwrap(),
        Path::new("vm-images/test.toml"),
        text,
    )
}

#[test]
fn a_good_recipe_is_understood() {
    let recipe = parse(GOOD).unwrap();
    assert_eq!(
        recipe.packages,
        ["linux-image-amd64/trixie-backports", "postgresql"]
    );
    assert_eq!(recipe.suites[1].archive, Archive::Security);
    assert_eq!(recipe.headroom, 64 << 20);
    assert_eq!(recipe.lock_file(), Path::new("vm-images/test.lock"));
}

#[test]
fn each_mistake_has_its_place_and_what_was_expected() {
    let cases = [
        (
            "late = [",
            "laet = [",
            "21:1: unknown field `laet`, expected one of `early`, `late`, `kept`; did you mean `late`?",
        ),
        (
            "\"security\"",
            "\"secure\"",
            "10:11: unknown variant `secure`, expected `main` or `security`; did you mean `security`?",
        ),
        (
            "[disk]\nheadroom = \"64 MiB\"\n",
            "",
            "1:1: missing field `disk`",
        ),
        (
            "\"64 MiB\"",
            "\"64 MB\"",
            "24:12: expected a size such as \"64 MiB\", found \"64 MB\"",
        ),
        (
            "\"/usr/lib",
            "\"usr/lib",
            "17:7: expected an absolute path, found \"usr/lib/postgresql/17/bin\"",
        ),
        (
            "\"xfs\"",
            "\"xfs.ko\"",
            "21:9: expected a kernel module's name, found \"xfs.ko\"",
        ),
        (
            "\"postgresql\"]",
            "\"PostgreSQL\"]",
            "3:34: expected a package's name, found \"PostgreSQL\"",
        ),
        (
            "\"postgresql\"]",
            "\"linux-image-amd64\"]",
            "3:34: \"linux-image-amd64\" is listed twice",
        ),
        (
            "suite = \"trixie-security\"",
            "suite = \"trixie\"",
            "9:9: the suite trixie is named twice",
        ),
        (
            "\npackages = [\"linux-image-amd64\"]\n\n[postgres]",
            "\npackages = [\"linux-image-amd46\"]\n\n[postgres]",
            "14:13: \"linux-image-amd46\" is not in `packages`, or taken from two suites; did you mean \"linux-image-amd64\"?",
        ),
        (
            "[\"main\"]",
            "[]",
            "2:14: no component, expected for instance [\"main\"]",
        ),
        (
            "\"Test\"",
            "\" \"",
            "1:9: `about` is empty, expected one line for people",
        ),
        (
            "[\"virtio_blk\"]",
            "\"virtio_blk\"",
            "20:9: invalid type: string \"virtio_blk\", expected a sequence",
        ),
        (
            "[modules]",
            "[modules",
            "19:9: unclosed table, expected `]`",
        ),
    ];
    for (good, bad, expected) in cases {
        assert_eq!(GOOD.matches(good).count(), 1, "{good}");
        let error = parse(&GOOD.replace(good, bad)).unwrap_err().to_string();
        assert_eq!(error, format!("vm-images/test.toml:{expected}"));
    }
}

#[test]
fn an_unknown_image_is_told_with_near_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["debian13.toml", "debian12.toml", "debian12.lock"] {
        fs::write(dir.path().join(name), GOOD).unwrap();
    }
    let error = Recipe::load(dir.path(), "debain12").unwrap_err();
    assert!(error.downcast_ref::<UnknownImage>().is_some());
    assert_eq!(
        error.to_string(),
        format!(
            "no image named \"debain12\" in {}; there are debian12, debian13; did you mean debian12?",
            dir.path().display()
        )
    );
    assert_eq!(
        Recipe::load(dir.path(), "debian12").unwrap().name.as_str(),
        "debian12"
    );
}

#[test]
fn names_with_odd_characters_are_refused() {
    for bad in ["", "-x", "x-", "X", "a/b", "..", "a b"] {
        assert!(ImageName::new(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn keys_follow_what_they_stand_for() {
    let recipe = parse(GOOD).unwrap();
    let late = parse(&GOOD.replace("\"xfs\"", "\"xfs\", \"btrfs\"")).unwrap();
    assert_eq!(recipe.packages_key(), late.packages_key());
    assert_ne!(recipe.key(), late.key());
    let more = parse(&GOOD.replace("\"postgresql\"]", "\"postgresql\", \"strace\"]")).unwrap();
    assert_ne!(recipe.packages_key(), more.packages_key());
    assert_ne!(recipe.key(), more.key());
    assert_eq!(
        recipe.key(),
        parse(&GOOD.replace("Test", "Other words")).unwrap().key()
    );
}

#[test]
fn packages_are_added_beside_what_the_lock_pins() {
    let plain = || parse(GOOD).unwrap();
    let with = |packages: &[&str]| {
        let packages: Vec<String> = packages.iter().map(|p| (*p).to_owned()).collect();
        plain().with_packages(&packages)
    };
    let more = with(&["g++", "bindfs", "postgresql", "linux-image-amd64"]).unwrap();
    assert_eq!(more.extra, ["bindfs", "g++"], "what is there is not added");
    assert_eq!(more.name.as_str(), "test-with-bindfs-g");
    assert_eq!(more.lock_file(), plain().lock_file());
    assert_eq!(more.packages_key(), plain().packages_key());
    let keys: BTreeSet<_> = [&["g++"][..], &["g"], &[]]
        .map(|packages| with(packages).unwrap().key())
        .into();
    assert_eq!(keys.len(), 3, "and they make another image");
    assert_eq!(with(&["postgresql"]).unwrap(), plain());
    assert!(with(&["Bind FS"]).is_err());
    assert!(with(&["bindfs=1"]).is_err());
}
