//! Tells the program which commit it was built from and for which target, for `--version`.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=GEARMAN_PROXY_COMMIT");
    // Packagers build from archives that know their commit but have no repository.
    let given = env::var("GEARMAN_PROXY_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(described).unwrap_or_else(|| "unknown".to_owned());
    let target = env::var("TARGET").unwrap_or_else(|_| "unknown".to_owned());
    println!("cargo::rustc-env=GEARMAN_PROXY_COMMIT={commit}");
    println!("cargo::rustc-env=GEARMAN_PROXY_TARGET={target}");
}

/// What git calls the commit of this folder. An archive unpacked inside somebody else's repository is not his commit.
fn described() -> Option<String> {
    let folder = env::var("CARGO_MANIFEST_DIR").ok()?;
    if !Path::new(&folder).join(".git").exists() {
        return None;
    }
    // The reference that HEAD names moves with each commit, HEAD itself with each change of branch; the reference may
    // also be packed, and its next commit then be in a new file, but the log of HEAD tells of that too.
    let reference = git(&["symbolic-ref", "-q", "HEAD"]);
    for file in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(reference.as_deref()) {
        // Cargo builds each time anew if a file that it watches isn't there.
        if let Some(path) = git(&["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["describe", "--always", "--tags", "--abbrev=10"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
