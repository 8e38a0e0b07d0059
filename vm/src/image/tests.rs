//! What images do without being built: keys, changes of locks, cleaning.

use super::*;

fn package(name: &str, version: &str) -> apt::Package {
    apt::Package {
        name: name.into(),
        version: version.into(),
        sha256: ContentHash::of(version),
    }
}

fn home(dir: &Path) -> Home {
    fs::write(dir.join("Cargo.toml"), "[workspace]\n").unwrap();
    Home::above(dir, None, None).unwrap()
}

#[test]
fn changes_of_a_lock_are_told() {
    let before = [package("a", "1"), package("b", "1"), package("c", "1")];
    let after = [package("b", "1"), package("c", "2"), package("d", "1")];
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    assert_eq!(
        changes(&before, &after),
        LockChanges {
            added: vec![pair("d", "1")],
            removed: vec![pair("a", "1")],
            changed: vec![("c".to_owned(), "1".to_owned(), "2".to_owned())],
        }
    );
}

/// The recipes of the project themselves: well formed, locked, and locked for
/// what they ask for now.
#[test]
fn the_project_s_recipes_have_locks_that_fit() {
    let home = Home::find().unwrap();
    let listed = list(&home).unwrap();
    let names: Vec<&str> = listed
        .iter()
        .map(|listed| listed.recipe.name.as_str())
        .collect();
    assert_eq!(names, ["debian12", "debian13", "debian13-backports"]);
    for Listed { recipe, lock, .. } in listed {
        let lock = lock.unwrap_or_else(|| panic!("{} has no lock", recipe.name));
        assert_eq!(
            lock.recipe,
            recipe.packages_key(),
            "run `cargo xtask image update {}`",
            recipe.name
        );
        for package in &recipe.packages {
            let name = package.split('/').next().unwrap();
            assert!(
                lock.packages.iter().any(|pin| pin.name == name),
                "{}: {name} is not locked",
                recipe.name
            );
        }
    }
}

#[test]
fn an_image_s_place_follows_recipe_and_lock() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe::load(&Home::find().unwrap().recipes, "debian12").unwrap();
    let home = home(dir.path());
    let lock = |version| Lock {
        recipe: recipe.packages_key(),
        packages: vec![package("a", version)],
    };
    let places =
        [None, Some(lock("1")), Some(lock("2"))].map(|lock| place(&home, &recipe, lock.as_ref()));
    assert_ne!(places[0], places[1]);
    assert_ne!(places[1], places[2]);
    assert_eq!(places[1], place(&home, &recipe, Some(&lock("1"))));
}

#[test]
fn cleaning_takes_the_named_images_only() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    for image in ["debian12@00", "debian12@11", "debian12-x@00"] {
        fs::create_dir_all(images(&home).join(image)).unwrap();
    }
    assert_eq!(
        clean(&home, Some(&ImageName::new("debian12").unwrap())).unwrap(),
        2
    );
    assert!(images(&home).join("debian12-x@00").exists());
    assert_eq!(clean(&home, None).unwrap(), 1);
    assert_eq!(clean(&home, None).unwrap(), 0);
}
