//! Locks of a folder whose path leads elsewhere.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use super::super::lock::try_flock;
use super::super::make_folder;
use super::*;

/// How often a path leads elsewhere, and back, while the lock is taken.
const TIMES: usize = 10_000;

/// The pins of a namespace, and another's folder beside; gone with the test.
struct Folders {
    pins: Pins,
    other: PathBuf,
}

impl Folders {
    fn new(test: &str) -> Self {
        let base = format!("gate-anchor-{}-{test}", std::process::id());
        let base = std::env::temp_dir().join(base);
        let [root, other] = ["gate", "other"].map(|name| base.join(name));
        for folder in [&base, &root, &other] {
            make_folder(folder).expect("a folder");
        }
        let namespace = "7".to_owned();
        let pins = Pins { root, namespace };
        Self { pins, other }
    }

    fn lock(&self) -> Lock {
        lock(&self.pins.root)
    }

    /// Puts each of the two in the other's place.
    fn exchange(&self) {
        let [one, other] = [&self.pins.root, &self.other];
        renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).expect("exchange");
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _left = self.other.parent().map(fs::remove_dir_all);
    }
}

#[track_caller]
fn lock(folder: &Path) -> Lock {
    match try_flock(folder).expect("flock") {
        Flocked::Taken(file) => Lock { file },
        Flocked::Busy | Flocked::Gone => panic!("{} is not to be had", folder.display()),
    }
}

/// The inode whose lock it is.
fn inode(lock: &Lock) -> u64 {
    lock.file.metadata().expect("stat").ino()
}

#[test]
fn the_lock_is_the_folder_s_though_another_is_at_its_path() {
    let folders = Folders::new("covered");
    let own = folders.lock();
    let anchor = own.anchor(&folders.pins).expect("an anchor");
    assert!(!anchor.is_lost());
    folders.exchange();
    assert!(anchor.is_lost() && anchor.is_out_of_reach());
    // Whoever has the other's lock is not in the way, and whoever has its own is.
    let others = folders.lock();
    assert!(anchor.try_lock().expect("flock").is_none());
    let expected = inode(&own);
    drop(own);
    let taken = anchor.lock().expect("the lock");
    assert_eq!(inode(&taken), expected);
    assert_ne!(inode(&others), expected);
}

#[test]
fn the_lock_is_the_folder_s_at_whatever_moment_its_path_leads_elsewhere() {
    let folders = Folders::new("raced");
    let own = folders.lock();
    let anchor = own.anchor(&folders.pins).expect("an anchor");
    let expected = inode(&own);
    drop(own);
    let ended = AtomicBool::new(false);
    scope(|scope| {
        scope.spawn(|| {
            (0..TIMES).for_each(|_| folders.exchange());
            ended.store(true, Ordering::Relaxed);
        });
        while !ended.load(Ordering::Relaxed) {
            let lock = anchor.lock().expect("the lock");
            assert_eq!(inode(&lock), expected);
        }
    });
}

#[test]
fn the_pins_are_the_folder_s_though_another_is_at_its_path() {
    let folders = Folders::new("pins");
    fs::create_dir_all(folders.pins.folder()).expect("a folder");
    let anchor = folders.lock().anchor(&folders.pins).expect("an anchor");
    folders.exchange();
    assert!(anchor.pins().exist() && !folders.pins.exist());
    fs::create_dir_all(folders.pins.folder()).expect("a folder");
    fs::remove_dir_all(&folders.other).expect("removed");
    assert!(folders.pins.exist() && !anchor.pins().exist());
}

#[test]
fn a_folder_that_was_removed_is_lost_and_not_out_of_reach() {
    let folders = Folders::new("removed");
    let anchor = folders.lock().anchor(&folders.pins).expect("an anchor");
    fs::remove_dir(&folders.pins.root).expect("removed");
    assert!(anchor.is_lost() && !anchor.is_out_of_reach());
    anchor.lock().expect("the lock");
}

#[test]
fn an_error_names_the_path_that_people_know() {
    let folders = Folders::new("told");
    let anchor = folders.lock().anchor(&folders.pins).expect("an anchor");
    let path = anchor.pins().map("GATES");
    let told = anchor.told(&Error::MissingPin { path });
    let known = folders.pins.map("GATES").display().to_string();
    assert!(told.contains(&known) && !told.contains("/proc/"), "{told}");
}
