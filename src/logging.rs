//! Where log lines go and what they look like.
//!
//! A line is simplelog's: local time with its offset, level, thread, message. Where standard error is systemd's journal,
//! which knows the time by itself, a line is the message after its priority and thread.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic;
use std::sync::Arc;
use std::thread;

use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use simplelog::{ConfigBuilder, ThreadLogMode, WriteLogger};

use crate::config::LogTarget;

/// What comes from outside is logged up to this length, bytes.
const MAX_ESCAPED: usize = 200;

/// Why there is no log.
#[derive(Debug)]
pub enum LogError {
    /// The target could not be opened.
    Open {
        /// Where the log should go.
        target: LogTarget,
        /// Why it doesn't.
        error: io::Error,
    },
    /// The process has a logger already.
    Taken,
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Open { target: LogTarget::File(path), error } => {
                write!(f, "log file {} can't be opened: {error}", path.display())
            }
            LogError::Open { target: LogTarget::Stdout, error } => write!(f, "standard output can't be used: {error}"),
            LogError::Open { target: LogTarget::Stderr, error } => write!(f, "standard error can't be used: {error}"),
            LogError::Taken => write!(f, "the log is set up already"),
        }
    }
}

impl std::error::Error for LogError {}

/// What can be changed about the log while the process runs.
#[derive(Debug, Clone)]
pub struct Handle {
    output: Arc<Mutex<Output>>,
}

impl Handle {
    /// Opens the log file anew: after logrotate has moved it, lines go to the new one.
    ///
    /// # Errors
    /// It can't be opened; lines go on to the old one.
    pub fn reopen(&self) -> Result<(), LogError> {
        let target = self.output.lock().target.clone();
        self.set_target(&target)
    }

    /// Lets the log go to another place. A file is opened anew even if it is the same.
    ///
    /// # Errors
    /// It can't be opened; lines go on to the old one.
    pub fn set_target(&self, target: &LogTarget) -> Result<(), LogError> {
        let output = Output::open(target)?;
        *self.output.lock() = output;
        Ok(())
    }

    /// Lines above `level` are no longer written.
    pub fn set_level(&self, level: LevelFilter) {
        log::set_max_level(level);
    }
}

/// Starts the log. To be called before the first thread is started: only then can the local time's offset be read; if it
/// can't, times are UTC. Panics are logged from here on.
///
/// # Errors
/// The target can't be opened.
pub fn init(target: &LogTarget, level: LevelFilter) -> Result<Handle, LogError> {
    let output = Arc::new(Mutex::new(Output::open(target)?));
    log::set_boxed_logger(Box::new(Logger::new(Arc::clone(&output)))).map_err(|_| LogError::Taken)?;
    log::set_max_level(level);
    log_panics();
    Ok(Handle { output })
}

fn log_panics() {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        log::error!("panic: {}", escaped(panic.to_string().replace('\n', " ").as_bytes()));
        default(panic);
    }));
}

/// Bytes from outside, made fit for a log: printable ASCII as it is, anything else as `\xNN`, and only the first 200.
pub fn escaped(bytes: &[u8]) -> impl fmt::Display {
    Escaped(bytes)
}

struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0.iter().take(MAX_ESCAPED) {
            match byte {
                b' '..=b'~' => write!(f, "{}", byte as char)?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        if self.0.len() > MAX_ESCAPED { f.write_str("...") } else { Ok(()) }
    }
}

/// The open end of the log.
#[derive(Debug)]
struct Output {
    target: LogTarget,
    file: File,
    journal: bool,
}

impl Output {
    fn open(target: &LogTarget) -> Result<Output, LogError> {
        // The standard streams by their descriptors: std's own buffer and keep what could not be written.
        let file = match target {
            LogTarget::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
            LogTarget::Stderr => io::stderr().as_fd().try_clone_to_owned().map(File::from),
            LogTarget::File(path) => OpenOptions::new().append(true).create(true).mode(0o640).open(path),
        };
        let file = file.map_err(|error| LogError::Open { target: target.clone(), error })?;
        let journal = *target == LogTarget::Stderr
            && std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&file, &stream));
        Ok(Output { target: target.clone(), file, journal })
    }
}

/// Whether `file` is the one that `stream` names, as `DEVICE:INODE` (JOURNAL_STREAM in systemd.exec(5)).
fn is_stream(file: &File, stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    file.metadata().is_ok_and(|there| device.parse() == Ok(there.dev()) && inode.parse() == Ok(there.ino()))
}

/// Gathers what simplelog writes in pieces, so that a line is written at once and lines of two processes don't mix.
struct Line {
    output: Arc<Mutex<Output>>,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.ends_with(b"\n") {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A full disk or a reader that is gone stops nothing: the line is lost.
        let _ = self.output.lock().file.write_all(&self.bytes);
        self.bytes.clear();
        Ok(())
    }
}

struct Logger {
    plain: Box<WriteLogger<Line>>,
    output: Arc<Mutex<Output>>,
}

impl Logger {
    fn new(output: Arc<Mutex<Output>>) -> Logger {
        let mut config = ConfigBuilder::new();
        config
            .set_time_format_rfc3339()
            .set_thread_level(LevelFilter::Error)
            .set_thread_mode(ThreadLogMode::Names)
            .set_target_level(LevelFilter::Off)
            .set_location_level(LevelFilter::Off);
        // An error leaves UTC.
        let _ = config.set_time_offset_to_local();
        let line = Line { output: Arc::clone(&output), bytes: Vec::new() };
        // What is written is decided by log's own level, which can be changed.
        Logger { plain: WriteLogger::new(LevelFilter::Trace, config.build(), line), output }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Formatted before any lock is taken: a panic in there must find the log usable.
        let message = record.args().to_string();
        if self.output.lock().journal {
            let line = journal_line(record.level(), thread::current().name(), &message);
            let _ = self.output.lock().file.write_all(line.as_bytes());
        } else {
            let level = record.level();
            self.plain.log(&Record::builder().level(level).args(format_args!("{message}")).build());
        }
    }

    fn flush(&self) {}
}

/// A line for the journal: `<PRIORITY>(THREAD) MESSAGE` (sd-daemon(3)).
fn journal_line(level: Level, thread: Option<&str>, message: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    match thread {
        Some(thread) => format!("<{priority}>({thread}) {message}\n"),
        None => format!("<{priority}>{message}\n"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A logger of its own: the process's is one for all tests.
    fn logger(target: &LogTarget) -> (Logger, Handle) {
        let output = Arc::new(Mutex::new(Output::open(target).unwrap()));
        (Logger::new(Arc::clone(&output)), Handle { output })
    }

    fn say(logger: &Logger, level: Level, message: &str) {
        log::set_max_level(LevelFilter::Info);
        logger.log(&Record::builder().level(level).args(format_args!("{message}")).build());
    }

    fn scratch_file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("gearman-proxy-log-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }

    #[test]
    fn a_line_holds_time_offset_level_thread_and_message() {
        let path = scratch_file("form");
        let (logger, _) = logger(&LogTarget::File(path.clone()));
        thread::Builder::new()
            .name(String::from("queue/reader"))
            .spawn(move || say(&logger, Level::Warn, "destination down"))
            .unwrap()
            .join()
            .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let form =
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d) \[WARN\] \(queue/reader\) destination down\n$";
        assert!(
            regex::bytes::RegexBuilder::new(form).unicode(false).build().unwrap().is_match(text.as_bytes()),
            "{text}"
        );
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777 & !0o640, 0, "others may not read it");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_is_appended_to_and_opened_anew_after_it_was_moved() {
        let path = scratch_file("reopened");
        let moved = scratch_file("moved");
        fs::write(&path, "before\n").unwrap();
        let (logger, handle) = logger(&LogTarget::File(path.clone()));
        say(&logger, Level::Info, "one");
        fs::rename(&path, &moved).unwrap();
        say(&logger, Level::Info, "two");
        handle.reopen().unwrap();
        say(&logger, Level::Info, "three");
        let lines = |path: &PathBuf| -> Vec<String> {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(lines(&moved), ["before", "one", "two"]);
        assert_eq!(lines(&path), ["three"]);
        fs::remove_file(&path).unwrap();
        fs::remove_file(&moved).unwrap();
    }

    #[test]
    fn a_target_that_cannot_be_opened_leaves_the_old_one() {
        let path = scratch_file("kept");
        let (logger, handle) = logger(&LogTarget::File(path.clone()));
        let error = handle.set_target(&LogTarget::File("/nonexistent/proxy.log".into())).unwrap_err().to_string();
        assert!(error.starts_with("log file /nonexistent/proxy.log can't be opened: No such file"), "{error}");
        say(&logger, Level::Info, "still here");
        assert!(fs::read_to_string(&path).unwrap().ends_with("still here\n"));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_full_disk_stops_nothing() {
        let (logger, handle) = logger(&LogTarget::File("/dev/full".into()));
        say(&logger, Level::Error, "lost");
        let path = scratch_file("after-full");
        handle.set_target(&LogTarget::File(path.clone())).unwrap();
        say(&logger, Level::Error, "found");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("found\n") && !text.contains("lost"), "{text}");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_level_is_that_of_the_log_crate() {
        let path = scratch_file("level");
        let (logger, _) = logger(&LogTarget::File(path.clone()));
        say(&logger, Level::Debug, "not written");
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_panic_while_a_message_is_made_leaves_the_log_usable() {
        struct Bad;
        impl fmt::Display for Bad {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("bad message")
            }
        }
        let path = scratch_file("panic");
        let (logger, _) = logger(&LogTarget::File(path.clone()));
        log::set_max_level(LevelFilter::Info);
        let made = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            logger.log(&Record::builder().level(Level::Info).args(format_args!("{}", Bad)).build());
        }));
        assert!(made.is_err());
        say(&logger, Level::Info, "usable");
        assert!(fs::read_to_string(&path).unwrap().ends_with("usable\n"));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        assert_eq!(journal_line(Level::Error, Some("status"), "down"), "<3>(status) down\n");
        assert_eq!(journal_line(Level::Warn, Some("main"), "x"), "<4>(main) x\n");
        assert_eq!(journal_line(Level::Info, None, "x"), "<6>x\n");
        assert_eq!(journal_line(Level::Trace, None, "x"), "<7>x\n");
        let path = scratch_file("journal");
        let (logger, handle) = logger(&LogTarget::File(path.clone()));
        handle.output.lock().journal = true;
        thread::Builder::new()
            .name(String::from("status"))
            .spawn(move || say(&logger, Level::Error, "down"))
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "<3>(status) down\n");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let path = scratch_file("stream");
        let file = File::create(&path).unwrap();
        let there = file.metadata().unwrap();
        assert!(is_stream(&file, &format!("{}:{}", there.dev(), there.ino())));
        assert!(!is_stream(&file, &format!("{}:{}", there.dev(), there.ino() + 1)));
        assert!(!is_stream(&file, ""));
        assert!(!is_stream(&file, "8:x"));
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_comes_from_outside_is_printable_and_short() {
        assert_eq!(escaped(b"host_name=web1~").to_string(), "host_name=web1~");
        assert_eq!(escaped(b"a\nb\x1b[2J\0\x7f\xfc").to_string(), "a\\x0ab\\x1b[2J\\x00\\x7f\\xfc");
        assert_eq!(escaped(&[b'x'; 200]).to_string(), "x".repeat(200));
        assert_eq!(escaped(&[b'x'; 201]).to_string(), format!("{}...", "x".repeat(200)));
    }
}
