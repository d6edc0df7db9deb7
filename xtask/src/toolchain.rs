//! The toolchain for BPF: found, or fetched, and written down as a recipe.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::debian::{self, Apt, Package};
use crate::linker::{self, LLVM_MAJOR};
use crate::recipe::{RECIPE_FILE, Recipe};
use crate::rustc::{self, Rustc};
use crate::rustup::{self, Nightly};

/// Where Debian's compiler is kept in the cache.
const DEBIAN: &str = "debian-rustc";

/// Debian's names: the compiler, its host libraries, its BPF libraries. A stable release gets new
/// compilers under the `-web` names (they build its browsers).
const DEBIAN_NAMES: [[&str; 3]; 2] = [
    ["rustc", "libstd-rust-dev", "libstd-rust-dev-bpf"],
    [
        "rustc-web",
        "libstd-rust-web-dev",
        "libstd-rust-web-dev-bpf",
    ],
];

/// A compiler that has, or can build, `core` for BPF.
enum Toolchain {
    Nightly(Nightly),
    Debian {
        rustc: Rustc,
        libraries: Vec<PathBuf>,
    },
}

/// Makes sure that the data path can be compiled, and writes the recipe for it.
pub fn ensure(cache: &Cache) -> Result<()> {
    let toolchain = find_or_fetch(cache)?;
    let linker = linker::ensure(cache)?;
    cache.write(RECIPE_FILE, &toolchain.recipe(&linker)?.to_string())
}

/// What is here comes first; then rustup, which most people build for BPF with; then Debian. Once
/// Debian's compiler is here, rustup isn't asked again.
fn find_or_fetch(cache: &Cache) -> Result<Toolchain> {
    if let Some(nightly) = rustup::ready() {
        return Ok(Toolchain::Nightly(nightly));
    }
    if let Ok(toolchain) = debian_at(&cache.path(DEBIAN)) {
        return Ok(toolchain);
    }
    eprintln!("Compiling the data path needs a Rust core library for BPF. Fetching one, once.");
    let rustup_failed = match rustup::fetch() {
        Ok(nightly) => return Ok(Toolchain::Nightly(nightly)),
        Err(error) => error,
    };
    eprintln!("Not from rustup: {rustup_failed:#}.");
    match fetch_debian(cache) {
        Ok(toolchain) => Ok(toolchain),
        Err(debian_failed) => bail!(
            "no BPF toolchain: rustup: {rustup_failed:#}; Debian: {debian_failed:#}. With \
             rustup, run `{}`, then this again",
            rustup::by_hand()
        ),
    }
}

/// The compiler in an unpacked tree, if it is all there and runs.
fn debian_at(root: &Path) -> Result<Toolchain> {
    let libraries = debian::library_folders(root);
    let rustc = rustc::ask(&root.join("usr/bin/rustc"), &libraries)?;
    if rustc.llvm_major != LLVM_MAJOR {
        bail!(
            "{} has LLVM {}, bpf-linker needs {LLVM_MAJOR}",
            rustc.title,
            rustc.llvm
        );
    }
    let core = root.join("usr/lib/rustlib/bpfel-unknown-none/lib");
    let found = fs::read_dir(&core)
        .with_context(|| format!("list {}", core.display()))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .any(|name| name.starts_with("libcore-"));
    if !found {
        bail!("{} has no libcore", core.display());
    }
    Ok(Toolchain::Debian { rustc, libraries })
}

fn fetch_debian(cache: &Cache) -> Result<Toolchain> {
    if !Apt::available() {
        bail!("there is no apt");
    }
    let root = cache.install(DEBIAN, |scratch| {
        let apt = Apt::open(scratch)?;
        let packages = choose_debian(|roots| apt.with_needs(roots, part_of_rust))?;
        eprintln!(
            "Fetching Debian's Rust compiler with a core for BPF ({}). It is only unpacked, into \
             {}; nothing is installed.",
            debian::size(&packages),
            cache.path(DEBIAN).display()
        );
        let root = apt.unpack(&packages)?;
        debian_at(&root).context("check the unpacked compiler")?;
        Ok(root)
    })?;
    debian_at(&root)
}

/// The first of Debian's compilers that bpf-linker can work with.
fn choose_debian(
    mut with_needs: impl FnMut(&[&str]) -> Result<Vec<Package>>,
) -> Result<Vec<Package>> {
    let llvm = format!("libllvm{LLVM_MAJOR}");
    let mut reasons = Vec::new();
    for names in DEBIAN_NAMES {
        match with_needs(&names) {
            Ok(packages)
                if packages
                    .iter()
                    .any(|package| package.name.starts_with(&llvm)) =>
            {
                return Ok(packages);
            }
            Ok(_) => reasons.push(format!("{} is not built on {llvm}", names[0])),
            Err(error) => reasons.push(format!("{error:#}")),
        }
    }
    bail!("{}", reasons.join(", "))
}

/// These must come from one version, whatever the system has.
fn part_of_rust(name: &str) -> bool {
    name.starts_with("libstd-rust") || name.starts_with("libllvm")
}

impl Toolchain {
    fn recipe(&self, linker: &Path) -> Result<Recipe> {
        let (rustc, libraries) = match self {
            Self::Nightly(nightly) => (&nightly.rustc, vec![nightly.libraries()]),
            Self::Debian { rustc, libraries } => (rustc, libraries.clone()),
        };
        let libraries = rustc::join(&libraries)?;
        let mut recipe = Recipe {
            comments: vec![
                "How to compile gate-ebpf. `cargo xtask build` writes this file.".to_owned(),
                format!("{}, LLVM {}, {}", rustc.title, rustc.llvm, linker::title()),
            ],
            program: None,
            args: Vec::new(),
            rustflags: vec![
                format!("--cfg=bpf_target_arch=\"{ARCH}\""),
                // Without debug info there is nothing to make BTF from.
                "-Cdebuginfo=2".to_owned(),
                "-Clink-arg=--btf".to_owned(),
                // A packet's words are read whole, and not a byte at a time (LLVM 22).
                "-Ctarget-feature=+allows-misaligned-mem-access".to_owned(),
                format!("-Clinker={}", linker.display()),
            ],
            env: vec![
                ("RUSTC".to_owned(), rustc.path.display().to_string()),
                (
                    "LD_LIBRARY_PATH".to_owned(),
                    libraries.to_string_lossy().into_owned(),
                ),
            ],
        };
        match self {
            Self::Nightly(nightly) => {
                recipe.program = Some(nightly.root.join("bin/cargo"));
                recipe.args = vec!["-Zbuild-std=core".to_owned()];
            }
            // aya-ebpf and gate-ebpf want unstable features of a compiler that is stable. Only those
            // crates: with "1" others would turn theirs on too.
            Self::Debian { .. } => {
                recipe.env.push((
                    "RUSTC_BOOTSTRAP".to_owned(),
                    "aya_ebpf,gate_ebpf".to_owned(),
                ));
            }
        }
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> Package {
        Package {
            name: name.to_owned(),
            ..Package::default()
        }
    }

    #[test]
    fn the_compiler_with_the_right_llvm_is_chosen() {
        let chosen = choose_debian(|roots| {
            let llvm = if roots[0] == "rustc-web" {
                "libllvm22"
            } else {
                "libllvm14"
            };
            Ok(vec![package(roots[0]), package(llvm)])
        });
        assert_eq!(chosen.unwrap()[0].name, "rustc-web");
    }

    #[test]
    fn a_refusal_gives_every_reason() {
        let refused = choose_debian(|roots| match roots[0] {
            "rustc" => Ok(vec![package("libllvm14")]),
            other => bail!("apt has no package {other}"),
        });
        let message = refused.unwrap_err().to_string();
        assert_eq!(
            message,
            "rustc is not built on libllvm22, apt has no package rustc-web"
        );
    }
}
