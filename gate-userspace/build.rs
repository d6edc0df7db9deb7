//! Compiles gate-ebpf to `$OUT_DIR/gate.bpf.o`, `steer.bpf.o` and `listen.bpf.o`, by the recipe that `cargo xtask build` wrote.

#[path = "../xtask/src/recipe.rs"]
#[allow(dead_code, reason = "xtask writes what this reads")]
mod recipe;

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use recipe::{RECIPE_VARIABLE, Recipe, recipe_path};

const TARGET: &str = "bpfel-unknown-none";

/// Cargo's variables that the inner cargo may see. All others belong to the outer build (its
/// flags, profile, clippy as a wrapper): with them the object would differ from run to run.
const KEPT: [&str; 6] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_MAKEFLAGS",
    "CARGO_NET_",
    "CARGO_REGISTRIES_",
    "CARGO_TERM_",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let workspace = variable("CARGO_MANIFEST_DIR")?
        .parent()
        .ok_or("gate-userspace has no parent folder")?
        .to_owned();
    let out = variable("OUT_DIR")?;
    let target_folder = target_folder(&out)?.join("bpf");

    println!("cargo::rerun-if-env-changed={RECIPE_VARIABLE}");
    for input in [
        "Cargo.toml",
        "Cargo.lock",
        "gate-common/Cargo.toml",
        "gate-common/src",
        "gate-ebpf/Cargo.toml",
        "gate-ebpf/src",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    let recipe = read_recipe()?;

    let mut cargo = Command::new(match recipe.program {
        Some(program) => program,
        None => variable("CARGO")?,
    });
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let of_cargo = name.starts_with("CARGO") || name.starts_with("RUST");
        if of_cargo
            && !name.starts_with("RUSTUP_")
            && !KEPT.iter().any(|kept| name.starts_with(kept))
        {
            cargo.env_remove(&*name);
        }
    }
    // A target folder of its own: the outer cargo holds the lock of the other one.
    cargo
        .current_dir(&workspace)
        .args(["build", "--package=gate-ebpf", "--release", "--locked"])
        .arg(format!("--target={TARGET}"))
        .arg("--target-dir")
        .arg(&target_folder)
        .args(recipe.args)
        .env("CARGO_ENCODED_RUSTFLAGS", recipe.rustflags.join("\x1f"))
        .envs(recipe.env);
    let output = cargo.output().map_err(|error| {
        let program = cargo.get_program().display();
        format!("can't run {program}: {error}; `cargo xtask build` finds another toolchain")
    })?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{messages}");
        return Err(format!("gate-ebpf does not compile ({})", output.status).into());
    }

    for (binary, name) in [
        ("gate-ebpf", "gate.bpf.o"),
        ("gate-steer", "steer.bpf.o"),
        ("gate-listen", "listen.bpf.o"),
    ] {
        let object = target_folder.join(TARGET).join("release").join(binary);
        copy_if_changed(&object, &out.join(name))
            .map_err(|error| format!("can't copy {}: {error}", object.display()))?;
    }
    Ok(())
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set"))
}

/// `<target>` of `<target>[/<triple>]/<profile>/build/<package>/out`; cargo marks it.
fn target_folder(out: &Path) -> Result<&Path, String> {
    out.ancestors()
        .find(|folder| folder.join("CACHEDIR.TAG").exists())
        .or_else(|| out.ancestors().nth(4))
        .ok_or_else(|| format!("no target folder above {}", out.display()))
}

fn read_recipe() -> Result<Recipe, String> {
    let path =
        recipe_path().ok_or("neither HOME nor XDG_CACHE_HOME names a folder for the BPF recipe")?;
    println!("cargo::rerun-if-changed={}", path.display());
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!(
                "no BPF toolchain yet: run `cargo xtask build` once ({} is missing)",
                path.display()
            )
        }
        _ => format!("can't read {}: {error}", path.display()),
    })?;
    Recipe::parse(&text).map_err(|error| {
        format!(
            "{}: {error}; `cargo xtask build` writes it anew",
            path.display()
        )
    })
}

/// An unchanged object keeps its time, so that nothing that includes it is compiled again.
fn copy_if_changed(from: &Path, to: &Path) -> io::Result<()> {
    let object = fs::read(from)?;
    if fs::read(to).is_ok_and(|old| old == object) {
        return Ok(());
    }
    fs::write(to, object)
}
