//! The file that tells init scripts which process the proxy is.
//!
//! An existing file means that another proxy runs or that one has crashed. It is believed only if the process has our name in
//! /proc/PID/stat (`gearman-proxy`) and runs as the file's owner. So a start succeeds after a crash even if another program
//! has got the number, and even if another user gave a process our name.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use crate::logging::{escaped, name_missing_folder};

/// Longer than any process id, bytes: a longer file is not a pid file.
const MAX_SIZE: u64 = 32;

/// How long to wait for another proxy that is starting with the same file.
const PATIENCE: Duration = Duration::from_secs(1);

/// O_NOFOLLOW and O_NONBLOCK of open(2): no symbolic link, and no wait for a FIFO.
const OPEN: i32 = O_NOFOLLOW | 0o4000;
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
const O_NOFOLLOW: i32 = 0o100_000;
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
const O_NOFOLLOW: i32 = 0o400_000;

/// A pid file that is ours; removed when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Writes this process's id to `path`, replacing the file of a process that is gone.
    ///
    /// # Errors
    /// The file names a gearman-proxy that runs, is not one of ours, or can't be written.
    pub fn create(path: &Path) -> io::Result<PidFile> {
        let running = |pid, owner| pid != process::id() && is_proxy(pid, owner);
        claim(path, process::id(), running).map_err(|error| {
            let error = name_missing_folder(path, error);
            let path = escaped(path.as_os_str().as_encoded_bytes());
            io::Error::new(error.kind(), format!("pid file {path}: {error}"))
        })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if same_file(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes `id` to the file, unless it names a process that is `running`.
fn claim(path: &Path, id: u32, running: impl Fn(u32, u32) -> bool) -> io::Result<PidFile> {
    // Of two that start at once, the second looks when the first has written.
    let _guard = lock(path)?;
    if let Some((content, owner)) = read(path)? {
        let text = content.trim_ascii();
        match str::from_utf8(text).ok().and_then(|text| text.parse::<u32>().ok()) {
            Some(pid) if running(pid, owner) => {
                let reason = format!("gearman-proxy runs as process {pid}: stop it first, or use another file");
                return Err(io::Error::other(reason));
            }
            // Better left alone.
            None if !text.is_empty() => {
                return Err(io::Error::other("it does not hold a process id: remove it, or use another file"));
            }
            _ => {}
        }
    }
    let temporary = beside(path, "new");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&temporary)?;
    writeln!(file, "{id}")?;
    // Renamed, so that a reader never sees half a number.
    fs::rename(&temporary, path)?;
    Ok(PidFile { path: path.to_owned(), file })
}

/// Held while a pid file is looked at and written: a lock on a file beside it, which only its owner and root can open, so that
/// no other user can hold it. (The pid file itself may be readable for all.)
fn lock(pid_file: &Path) -> io::Result<PidFile> {
    let path = beside(pid_file, "lock");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let file = match OpenOptions::new().write(true).create(true).mode(0o600).custom_flags(OPEN).open(&path) {
            // Left by a crash under another user.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && fs::remove_file(&path).is_ok() => continue,
            file => file?,
        };
        match file.try_lock() {
            // A file system without locks: then only two starts at the same moment are not told apart.
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::other("another gearman-proxy is starting with it"));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(5)),
            // Unless its last owner removed it between the opening and the lock.
            _ if same_file(&file, &path) => return Ok(PidFile { path, file }),
            _ => {}
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// What the file holds, and its owner; None without one.
fn read(path: &Path) -> io::Result<Option<(Vec<u8>, u32)>> {
    let there = match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        there => there?,
    };
    if !there.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // What took its place meanwhile is neither followed nor waited for.
    let file = OpenOptions::new().read(true).custom_flags(OPEN).open(path)?;
    let (owner, mut content) = (file.metadata()?.uid(), Vec::new());
    file.take(MAX_SIZE).read_to_end(&mut content)?;
    Ok(Some((content, owner)))
}

fn is_proxy(pid: u32, owner: u32) -> bool {
    let running = |pid: &dyn fmt::Display| {
        let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
        // PID (NAME) STATE ..., where the name may hold brackets and blanks, and is cut to 15 bytes.
        let (from, to) = (stat.iter().position(|&byte| byte == b'(')?, stat.iter().rposition(|&byte| byte == b')')?);
        // One that has ended and only waits for its parent to notice does not run.
        let ended = matches!(stat.get(to + 2), None | Some(b'Z' | b'X'));
        stat.get(from..to).filter(|_| !ended).map(<[u8]>::to_vec)
    };
    let theirs = fs::metadata(format!("/proc/{pid}")).map(|there| there.uid());
    theirs.is_ok_and(|theirs| theirs == owner) && running(&pid).is_some_and(|name| Some(name) == running(&"self"))
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Folder {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("gearman-proxy-pidfile-{}-{number}", process::id()));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn pid_file(&self) -> PathBuf {
            self.0.join("proxy.pid")
        }

        fn holds_our_id(&self) -> bool {
            fs::read_to_string(self.pid_file()).unwrap() == format!("{}\n", process::id())
                && fs::read_dir(&self.0).unwrap().count() == 1
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    /// A process that runs until it is dropped.
    struct Sleeper(Child);

    impl Sleeper {
        /// Under the name of this process, or its own.
        fn start(folder: &Folder, like_us: bool) -> Sleeper {
            let ours = std::env::current_exe().unwrap();
            let name = if like_us { ours.file_name().unwrap() } else { "sleep".as_ref() };
            let program = folder.0.join(name);
            fs::copy("/bin/sleep", &program).unwrap();
            // While another test's process is being started, the copy may still be open for writing there.
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                match Command::new(&program).arg("1000").spawn() {
                    Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {}
                    child => {
                        fs::remove_file(&program).unwrap();
                        return Sleeper(child.unwrap());
                    }
                }
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn it_holds_our_process_id_and_is_gone_in_the_end() {
        let folder = Folder::new();
        let pid_file = PidFile::create(&folder.pid_file()).unwrap();
        assert!(folder.holds_our_id());
        assert_eq!(fs::metadata(folder.pid_file()).unwrap().mode() & 0o777 & !0o640, 0);
        drop(pid_file);
        assert!(!folder.pid_file().exists());
    }

    #[test]
    fn a_process_of_our_name_is_an_error_that_names_file_and_process() {
        let folder = Folder::new();
        let sleeper = Sleeper::start(&folder, true);
        let content = format!("{}\n", sleeper.0.id());
        fs::write(folder.pid_file(), &content).unwrap();
        let error = PidFile::create(&folder.pid_file()).unwrap_err().to_string();
        assert!(error.contains(&format!("proxy.pid: gearman-proxy runs as process {}", sleeper.0.id())), "{error}");
        assert_eq!(fs::read_to_string(folder.pid_file()).unwrap(), content);
        drop(sleeper);
        PidFile::create(&folder.pid_file()).unwrap();
    }

    #[test]
    fn another_program_with_the_number_is_no_obstacle_nor_is_another_users_process() {
        let folder = Folder::new();
        let sleeper = Sleeper::start(&folder, false);
        fs::write(folder.pid_file(), format!("{}\n", sleeper.0.id())).unwrap();
        let _pid_file = PidFile::create(&folder.pid_file()).unwrap();
        assert!(folder.holds_our_id());
        let ours = Sleeper::start(&Folder::new(), true);
        let owner = fs::metadata(format!("/proc/{}", ours.0.id())).unwrap().uid();
        assert!(is_proxy(ours.0.id(), owner) && !is_proxy(ours.0.id(), owner + 1));
    }

    #[test]
    fn a_process_that_ended_is_none_even_before_its_parent_has_noticed() {
        let folder = Folder::new();
        let mut child = Command::new("true").spawn().unwrap();
        let stat = format!("/proc/{}/stat", child.id());
        while !fs::read_to_string(&stat).unwrap().contains(") Z ") {
            thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..2 {
            assert!(!is_proxy(child.id(), fs::metadata("/proc/self").unwrap().uid()));
            // Longer than what replaces it, so that a rest would show.
            fs::write(folder.pid_file(), format!("{}\n\n\n\n\n\n\n\n", child.id())).unwrap();
            let _pid_file = PidFile::create(&folder.pid_file()).unwrap();
            assert!(folder.holds_our_id());
            child.wait().unwrap();
        }
    }

    #[test]
    fn our_own_number_left_by_a_former_container_is_no_obstacle_nor_is_an_empty_file() {
        let folder = Folder::new();
        for content in [process::id().to_string(), String::new()] {
            fs::write(folder.pid_file(), content).unwrap();
            PidFile::create(&folder.pid_file()).unwrap();
        }
    }

    #[test]
    fn what_is_no_pid_file_is_left_alone() {
        let folder = Folder::new();
        fs::write(folder.pid_file(), "$remote = 127.0.0.1\n").unwrap();
        let error = PidFile::create(&folder.pid_file()).unwrap_err().to_string();
        assert!(error.ends_with("proxy.pid: it does not hold a process id: remove it, or use another file"), "{error}");
        assert_eq!(fs::read_to_string(folder.pid_file()).unwrap(), "$remote = 127.0.0.1\n");
        let missing = folder.0.join("missing").join("proxy.pid");
        let error = PidFile::create(&missing).unwrap_err().to_string();
        assert!(error.contains("missing/proxy.pid: folder "), "{error}");
        let (fifo, link) = (folder.0.join("fifo"), folder.0.join("link"));
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        std::os::unix::fs::symlink(folder.pid_file(), &link).unwrap();
        for path in [&fifo, &link, &folder.0] {
            let error = PidFile::create(path).unwrap_err().to_string();
            assert!(error.ends_with("it is not a regular file"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_somebody_elses_by_now_is_not_removed() {
        let folder = Folder::new();
        let pid_file = PidFile::create(&folder.pid_file()).unwrap();
        fs::remove_file(folder.pid_file()).unwrap();
        fs::write(folder.pid_file(), "another").unwrap();
        drop(pid_file);
        assert_eq!(fs::read_to_string(folder.pid_file()).unwrap(), "another");
    }

    #[test]
    fn of_many_that_start_at_once_one_gets_it() {
        let folder = Folder::new();
        let path = folder.pid_file();
        for round in 0..100 {
            if round % 2 == 0 {
                // Left by a crash.
                fs::write(&path, "9999\n").unwrap();
            }
            let start = std::sync::Barrier::new(8);
            let owners: Vec<_> = thread::scope(|scope| {
                let start_one = |id| {
                    let (start, path) = (&start, &path);
                    scope.spawn(move || {
                        start.wait();
                        claim(path, id, |pid, _| pid != 9999)
                    })
                };
                let threads: Vec<_> = (1..=8).map(start_one).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let owners: Vec<usize> =
                owners.iter().enumerate().filter(|(_, owner)| owner.is_ok()).map(|(at, _)| at + 1).collect();
            assert_eq!(owners.len(), 1, "{owners:?}");
        }
    }

    #[test]
    fn a_lock_on_the_pid_file_and_what_a_crash_left_are_no_obstacle() {
        let folder = Folder::new();
        let locked = File::create(folder.pid_file()).unwrap();
        locked.lock().unwrap();
        for left in ["lock", "new"] {
            fs::write(beside(&folder.pid_file(), left), "left by a crash").unwrap();
        }
        let _pid_file = PidFile::create(&folder.pid_file()).unwrap();
        assert!(folder.holds_our_id());
    }
}
