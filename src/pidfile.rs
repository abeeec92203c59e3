//! The file that tells init scripts which process the proxy is.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

/// More than any process id takes, bytes: a longer file is none of ours.
const MAX_SIZE: u64 = 32;

/// Why there is no pid file.
#[derive(Debug)]
pub enum PidFileError {
    /// The process that it names is alive.
    Running {
        /// The file.
        path: PathBuf,
        /// The process, where the file could be read.
        pid: Option<u32>,
    },
    /// The file holds something else than a process id, and is better left alone.
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl fmt::Display for PidFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PidFileError::Running { path, pid: Some(pid) } => {
                write!(f, "pid file {}: process {pid} is running: stop it first, or use another file", path.display())
            }
            PidFileError::Running { path, pid: None } => {
                write!(f, "pid file {}: another gearman-proxy is starting with it", path.display())
            }
            PidFileError::Foreign { path } => {
                write!(f, "pid file {}: it holds no process id: remove it, or use another file", path.display())
            }
            PidFileError::Io { path, error } => write!(f, "pid file {}: {error}", path.display()),
        }
    }
}

impl std::error::Error for PidFileError {}

/// A pid file that is ours; removed when dropped.
///
/// It stays locked while it is ours, which decides between two proxies that start at once, and between a crashed one and
/// another process that got its number.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    /// Writes this process's id to `path`, replacing the file of a process that is gone.
    ///
    /// # Errors
    /// The process that the file names is alive, or the file can't be written.
    pub fn create(path: &Path) -> Result<PidFile, PidFileError> {
        let failed = |error| PidFileError::Io { path: path.to_owned(), error };
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path)
                .map_err(failed)?;
            let locked = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => false,
                // A file system without locks: the process id alone has to do.
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => true,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            };
            let mut content = Vec::new();
            (&file).take(MAX_SIZE).read_to_end(&mut content).map_err(failed)?;
            let pid = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse::<u32>().ok());
            if !locked {
                return Err(PidFileError::Running { path: path.to_owned(), pid });
            }
            match pid {
                Some(pid) if pid != process::id() && alive(pid) => {
                    return Err(PidFileError::Running { path: path.to_owned(), pid: Some(pid) });
                }
                None if !content.trim_ascii().is_empty() => {
                    return Err(PidFileError::Foreign { path: path.to_owned() });
                }
                _ => {}
            }
            // Its last owner may have removed it between the opening and the lock: then we hold a file without a name.
            if !same_file(&file, path) {
                continue;
            }
            file.rewind().map_err(failed)?;
            file.set_len(0).map_err(failed)?;
            writeln!(file, "{}", process::id()).map_err(failed)?;
            return Ok(PidFile { path: path.to_owned(), file });
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if same_file(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the process runs. One that has ended and only waits for its parent to notice does not.
fn alive(pid: u32) -> bool {
    // PID (NAME) STATE ..., where the name may hold brackets and blanks.
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.iter().rposition(|&byte| byte == b')').and_then(|end| stat.get(end + 2));
    !matches!(state, Some(b'Z' | b'X'))
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
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
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn it_holds_our_process_id_and_is_gone_in_the_end() {
        let folder = Folder::new();
        let pid_file = PidFile::create(&folder.pid_file()).unwrap();
        assert_eq!(fs::read_to_string(folder.pid_file()).unwrap(), format!("{}\n", process::id()));
        drop(pid_file);
        assert!(!folder.pid_file().exists());
    }

    #[test]
    fn a_live_process_is_an_error_that_names_file_and_process() {
        let folder = Folder::new();
        fs::write(folder.pid_file(), "1\n").unwrap();
        let error = PidFile::create(&folder.pid_file()).unwrap_err().to_string();
        assert!(error.contains("proxy.pid: process 1 is running"), "{error}");
        assert_eq!(fs::read_to_string(folder.pid_file()).unwrap(), "1\n");
    }

    #[test]
    fn one_that_is_held_is_an_error_even_for_the_same_process() {
        let folder = Folder::new();
        let first = PidFile::create(&folder.pid_file()).unwrap();
        assert!(matches!(
            PidFile::create(&folder.pid_file()),
            Err(PidFileError::Running { pid: Some(pid), .. }) if pid == process::id()
        ));
        drop(first);
        PidFile::create(&folder.pid_file()).unwrap();
    }

    #[test]
    fn the_file_of_a_process_that_is_gone_is_replaced() {
        let folder = Folder::new();
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        // Longer than what replaces it, so that a rest would show.
        fs::write(folder.pid_file(), format!("{}\n\n\n\n\n\n\n\n", child.id())).unwrap();
        let _pid_file = PidFile::create(&folder.pid_file()).unwrap();
        assert_eq!(fs::read_to_string(folder.pid_file()).unwrap(), format!("{}\n", process::id()));
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
    fn a_file_that_is_no_pid_file_is_left_alone() {
        let folder = Folder::new();
        fs::write(folder.pid_file(), "$remote = 127.0.0.1\n").unwrap();
        assert!(matches!(PidFile::create(&folder.pid_file()), Err(PidFileError::Foreign { .. })));
        assert_eq!(fs::read_to_string(folder.pid_file()).unwrap(), "$remote = 127.0.0.1\n");
        let missing = folder.0.join("missing").join("proxy.pid");
        let error = PidFile::create(&missing).unwrap_err().to_string();
        assert!(error.contains("missing/proxy.pid: No such file"), "{error}");
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
        for _ in 0..20 {
            let start = std::sync::Barrier::new(8);
            let owners: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            PidFile::create(&path)
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(owners.iter().filter(|owner| owner.is_ok()).count(), 1);
        }
    }
}
