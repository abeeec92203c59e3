//! The kernel refuses what the daemon never does, e.g. starting programs and listening, so that an attacker who took it over
//! can't do it either.
//!
//! A seccomp filter answers EPERM to the system calls below. All others pass: a list of allowed calls would depend on the libc
//! and on what DNS, log and systemd need. SECURITY.md has the same list.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// EPERM of errno(3).
const EPERM: u32 = 1;

/// The bit of x86_64's second table of system calls (x32), which the same filter sees.
const X32: i64 = 0x4000_0000;

/// Names, and numbers on x86_64 and in the table that aarch64 and riscv64 share (the kernel's syscall_64.tbl and unistd.h).
const REFUSED: &[(&str, i64, i64)] = &[
    ("accept", 43, 202),
    ("accept4", 288, 242),
    ("add_key", 248, 217),
    ("bpf", 321, 280),
    ("chroot", 161, 51),
    ("clock_settime", 227, 112),
    ("delete_module", 176, 106),
    ("execve", 59, 221),
    ("execveat", 322, 281),
    ("finit_module", 313, 273),
    ("fsconfig", 431, 431),
    ("fsmount", 432, 432),
    ("fsopen", 430, 430),
    ("fspick", 433, 433),
    ("init_module", 175, 105),
    ("io_uring_setup", 425, 425),
    ("kexec_file_load", 320, 294),
    ("kexec_load", 246, 104),
    ("keyctl", 250, 219),
    ("listen", 50, 201),
    ("mount", 165, 40),
    ("mount_setattr", 442, 442),
    ("move_mount", 429, 429),
    ("open_tree", 428, 428),
    ("perf_event_open", 298, 241),
    ("pivot_root", 155, 41),
    ("process_vm_readv", 310, 270),
    ("process_vm_writev", 311, 271),
    ("ptrace", 101, 117),
    ("reboot", 169, 142),
    ("request_key", 249, 218),
    ("setns", 308, 268),
    ("settimeofday", 164, 170),
    ("swapoff", 168, 225),
    ("swapon", 167, 224),
    ("umount2", 166, 39),
    ("unshare", 272, 97),
    ("userfaultfd", 323, 282),
];

/// Those of the above that have a number of their own in x32: execve, execveat, kexec_load, process_vm_*, ptrace.
const REFUSED_X32: &[i64] = &[520, 545, 528, 539, 540, 521];

static STATUS: OnceLock<String> = OnceLock::new();

/// Sets no_new_privs and the filter for all threads of this process, those to come included. To be called once, when log and
/// pid file are open.
///
/// # Errors
/// Why the kernel refuses, or that this architecture has no list: the process runs on without.
pub fn apply() -> Result<(), String> {
    let result = filter().and_then(|filter| {
        seccompiler::apply_filter_all_threads(&filter).map_err(|error| error.to_string().replace('`', ""))
    });
    let status = result.as_ref().map_or_else(|reason| format!("off ({reason})"), |()| String::from("on"));
    // The first call decides; a second filter would change nothing.
    let _ = STATUS.set(status);
    result
}

/// `on`, or `off` with the reason, for the status.
pub fn status() -> &'static str {
    STATUS.get().map_or("off", String::as_str)
}

/// Whether this build has a filter for its architecture, for `--version`.
pub fn supported() -> bool {
    filter().is_ok()
}

fn filter() -> Result<BpfProgram, String> {
    let mut numbers: Vec<i64> =
        REFUSED.iter().map(|&(_, x86_64, others)| if ARCH == "x86_64" { x86_64 } else { others }).collect();
    if ARCH == "x86_64" {
        let same: Vec<i64> = numbers.iter().map(|number| number | X32).collect();
        numbers.extend(same.into_iter().chain(REFUSED_X32.iter().map(|number| number | X32)));
    }
    // No conditions on arguments: always.
    let rules: BTreeMap<_, _> = numbers.into_iter().map(|number| (number, Vec::new())).collect();
    let arch = ARCH.try_into().map_err(|_| format!("no list of system calls for {ARCH}"))?;
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM), arch)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_says_what_security_md_says() {
        assert!(REFUSED.is_sorted_by(|one, other| one.0 < other.0));
        let listed: Vec<String> = REFUSED.iter().map(|(name, ..)| format!("`{name}`")).collect();
        let text = include_str!("../SECURITY.md").split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(&listed.join(", ")), "SECURITY.md lacks: {}", listed.join(", "));
    }

    #[test]
    fn there_is_a_filter_for_this_architecture() {
        assert!(supported());
        let program = filter().unwrap();
        assert!(program.len() > REFUSED.len());
    }
}
