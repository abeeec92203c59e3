//! Tells the program which commit it was built from and for which target, for `--version`.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=GEARMAN_PROXY_COMMIT");
    // Packagers may know the commit of an archive that has no repository.
    let given = env::var("GEARMAN_PROXY_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(described).or_else(archived).unwrap_or_else(|| "unknown".to_owned());
    let target = env::var("TARGET").unwrap_or_else(|_| "unknown".to_owned());
    println!("cargo::rustc-env=GEARMAN_PROXY_COMMIT={commit}");
    println!("cargo::rustc-env=GEARMAN_PROXY_TARGET={target}");
}

/// What git calls the commit of this folder, with `-dirty` if tracked files differ from it. An archive that was
/// unpacked inside another repository is not a commit of that one.
fn described() -> Option<String> {
    let folder = env::var("CARGO_MANIFEST_DIR").ok()?;
    if !Path::new(&folder).join(".git").exists() {
        return None;
    }
    // The reference that HEAD names changes with each commit, HEAD itself with each change of branch. The reference
    // may also be packed, and its next commit then be in a new file, but the log of HEAD tells of that too.
    let reference = git(&["symbolic-ref", "-q", "HEAD"]);
    for file in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(reference.as_deref()) {
        if let Some(path) = git(&["rev-parse", "--git-path", file]) {
            watch(&path);
        }
    }
    // A release build looks at every tracked file, so that `-dirty` is never wrong. A debug build looks at what the
    // program is made of: otherwise each change of a test would compile the program again.
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        git(&["ls-files", "-z"])?.split('\0').for_each(watch);
    } else {
        ["src", "dist/man", "Cargo.toml", "Cargo.lock"].into_iter().for_each(watch);
    }
    let commit = git(&["describe", "--always", "--tags", "--abbrev=10"])?;
    // `git describe --dirty` would write the index, and with it wake whoever watches that.
    let changed = git(&["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"]).is_some();
    Some(if changed { commit + "-dirty" } else { commit })
}

/// The commit that `git archive` wrote into `dist/commit`.
fn archived() -> Option<String> {
    let text = fs::read_to_string("dist/commit").ok()?;
    println!("cargo::rerun-if-changed=dist/commit");
    let commit = text.trim().get(..10)?;
    commit.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| commit.to_owned())
}

/// Cargo runs this script each time if it watches a file that isn't there.
fn watch(path: &str) {
    if !path.is_empty() && Path::new(path).exists() {
        println!("cargo::rerun-if-changed={path}");
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
