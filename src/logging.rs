//! Where log lines go and what they look like.
//!
//! A line is simplelog's: local time, level, thread, message. Where standard error is systemd's journal, which knows the
//! time by itself, a line is the message after its priority and thread.
//!
//! The thread `log` writes the lines. All other threads put them into a bounded queue, so an unread pipe or a slow or full
//! disk never delays a job or a stop. Lines that the queue has no room for are dropped and counted.

use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io::ErrorKind::NotFound;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::panic;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use simplelog::{ConfigBuilder, ThreadLogMode, WriteLogger};

use crate::config::LogTarget;
use crate::latch::Latch;

/// What comes from outside is logged up to this length, bytes.
const MAX_ESCAPED: usize = 200;

/// Room for lines that wait to be written, bytes.
const QUEUE_SIZE: usize = 1 << 20;

/// How long a flush waits at most, and after how long the log's file is tried again while lines are lost.
const SECOND: Duration = Duration::from_secs(1);

/// With nothing to do, the thread waits this long at a time. The length does not matter.
const DAY: Duration = Duration::from_secs(86_400);

/// O_NONBLOCK of open(2): the opening of a FIFO returns at once. The same on x86_64, aarch64 and all newer architectures.
const O_NONBLOCK: i32 = 0o4000;

fn name(target: &LogTarget) -> String {
    match target {
        LogTarget::Stdout => String::from("standard output"),
        LogTarget::Stderr => String::from("standard error"),
        LogTarget::File(path) => format!("log file {}", escaped(path.as_os_str().as_encoded_bytes())),
    }
}

/// What can be changed about the log while the process runs.
#[derive(Debug, Clone)]
pub struct Handle {
    current: Arc<Mutex<Open>>,
}

/// A log that is open: what is known of it, and its thread.
#[derive(Debug, Clone)]
struct Open {
    place: Arc<Place>,
    thread: Sender<Message>,
}

#[derive(Debug)]
struct Place {
    target: LogTarget,
    journal: bool,
    /// Bytes of lines that wait for the thread.
    waiting: AtomicUsize,
    losses: Arc<Losses>,
}

/// What a log's thread is sent.
#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// All lines before this are written.
    Flush(Latch),
}

/// Lines that could not be written. Shared by all places of one log, so a reopened log file continues the count.
#[derive(Debug, Default)]
struct Losses {
    /// Lost and not told of yet.
    lines: AtomicU64,
    /// Standard error was told.
    told: AtomicBool,
}

impl Handle {
    /// Sends the log to another place. A file is opened again even if it is the same: logrotate may have moved it. Lines that are queued for the old place
    /// are still written there, by the old place's thread; if that is stuck, it is left alone.
    ///
    /// # Errors
    /// It can't be opened; lines still go to the old one.
    pub fn set_target(&self, target: &LogTarget) -> io::Result<()> {
        let losses = Arc::clone(&self.current.lock().place.losses);
        *self.current.lock() = Open::at(target, losses)?;
        Ok(())
    }
}

/// Starts the log and its thread. Panics are logged from here on.
///
/// # Errors
/// The target can't be opened.
pub fn init(target: &LogTarget, level: LevelFilter) -> io::Result<Handle> {
    let handle = Handle { current: Arc::new(Mutex::new(Open::at(target, Arc::default())?)) };
    log::set_boxed_logger(Box::new(handle.clone())).map_err(io::Error::other)?;
    log::set_max_level(level);
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        log::error!("panic: {panic}");
        // The process may end with the return of this hook.
        log::logger().flush();
        default(panic);
    }));
    Ok(handle)
}

/// Bytes from outside, made fit for a log, an error or a terminal: printable characters as they are, control and format
/// characters (also those that turn the direction of writing), invalid UTF-8 and lone combining characters escaped, and
/// only the first 200 bytes.
pub fn escaped(bytes: &[u8]) -> impl fmt::Display {
    escaped_up_to(MAX_ESCAPED, bytes)
}

fn escaped_up_to(limit: usize, bytes: &[u8]) -> impl fmt::Display {
    let shown = bytes.get(..limit).unwrap_or(bytes);
    fmt::from_fn(move |f| {
        for chunk in shown.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    ' '..='~' => write!(f, "{c}")?,
                    '\0'..='\x7f' => write!(f, "\\x{:02x}", u32::from(c))?,
                    // std's own table of what can't be printed or changes the character before it.
                    _ => write!(f, "{}", c.escape_debug())?,
                }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        f.write_str(if shown.len() < bytes.len() { "..." } else { "" })
    })
}

/// Limits messages of one kind: one a second, and after five quiet seconds the number of those that were not written.
/// The caller gives the time and asks [`Limiter::due`] now and then.
#[derive(Debug, Default)]
pub struct Limiter {
    written: Option<Instant>,
    suppressed: u64,
    last: Option<Instant>,
}

impl Limiter {
    const INTERVAL: Duration = Duration::from_secs(1);
    const QUIET: Duration = Duration::from_secs(5);

    /// Whether a message about this many is to be written now, and how many were before it in messages that were not.
    pub fn admit(&mut self, now: Instant, count: u64) -> Option<u64> {
        if self.written.is_some_and(|written| now.duration_since(written) < Self::INTERVAL) {
            self.suppressed += count;
            self.last = Some(now);
            return None;
        }
        self.written = Some(now);
        Some(mem::take(&mut self.suppressed))
    }

    pub fn holds_back(&self) -> bool {
        self.suppressed > 0
    }

    /// How many were in messages that were not written, once, when there was none for five seconds. (At the end, ask for a later time.)
    pub fn due(&mut self, now: Instant) -> Option<u64> {
        let quiet = self.last.is_some_and(|last| now.duration_since(last) >= Self::QUIET);
        (quiet && self.suppressed > 0).then(|| mem::take(&mut self.suppressed))
    }
}

impl Open {
    fn at(target: &LogTarget, losses: Arc<Losses>) -> io::Result<Open> {
        let failed =
            |error: io::Error| io::Error::new(error.kind(), format!("{} can't be opened: {error}", name(target)));
        let file = open(target).map_err(failed)?;
        let journal = *target == LogTarget::Stderr
            && std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&file, &stream));
        let place = Place { target: target.clone(), journal, waiting: AtomicUsize::new(0), losses };
        Open::start(Output { place: Arc::new(place), file, torn: false }).map_err(failed)
    }

    fn start(output: Output) -> io::Result<Open> {
        let (thread, messages) = unbounded();
        let place = Arc::clone(&output.place);
        thread::Builder::new().name(String::from("log")).spawn(move || output.run(&messages))?;
        Ok(Open { place, thread })
    }

    /// Lines that there is no room for are lost.
    fn push(&self, line: Vec<u8>) {
        let Place { waiting, losses, .. } = &*self.place;
        // Threads that do this at the same time may pass the limit by a line each.
        if waiting.load(Relaxed) + line.len() > QUEUE_SIZE {
            losses.lines.fetch_add(1, Relaxed);
        } else {
            waiting.fetch_add(line.len(), Relaxed);
            let _ = self.thread.send(Message::Line(line));
        }
    }
}

fn open(target: &LogTarget) -> io::Result<File> {
    match target {
        // The standard streams by their descriptors: std's own buffer and keep what could not be written.
        LogTarget::Stdout => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        LogTarget::Stderr => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        LogTarget::File(path) => open_file(path),
    }
}

/// Opens a regular file or a device such as /dev/null. Never blocks.
fn open_file(path: &Path) -> io::Result<File> {
    // Checked first, because opening a FIFO without a reader fails with the misleading ENXIO.
    path.metadata().map_or(Ok(()), |there| refuse_other(there.file_type()))?;
    let file = OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(O_NONBLOCK).open(path);
    let file = file.map_err(|error| name_missing_folder(path, error))?;
    refuse_other(file.metadata()?.file_type())?;
    Ok(file)
}

fn refuse_other(kind: FileType) -> io::Result<()> {
    let fits = kind.is_file() || kind.is_char_device();
    fits.then_some(()).ok_or_else(|| io::Error::other("it is not a regular file"))
}

/// In place of an error about a file that is not there: which of its folders is missing, if one is.
pub fn name_missing_folder(path: &Path, error: io::Error) -> io::Error {
    let missing = path.ancestors().skip(1).filter(|folder| *folder != "" && !folder.exists()).last();
    match missing.filter(|_| error.kind() == NotFound) {
        Some(folder) => {
            let folder = escaped(folder.as_os_str().as_encoded_bytes());
            io::Error::new(NotFound, format!("folder {folder} does not exist"))
        }
        None => error,
    }
}

/// Whether `file` is the one that `stream` names, as `DEVICE:INODE` (JOURNAL_STREAM in systemd.exec(5)).
fn is_stream(file: &File, stream: &str) -> bool {
    let Some((device, inode)) = stream.split_once(':') else { return false };
    file.metadata().is_ok_and(|there| device.parse() == Ok(there.dev()) && inode.parse() == Ok(there.ino()))
}

/// The open end of the log, which its thread owns.
struct Output {
    place: Arc<Place>,
    file: File,
    /// The last line that was written may not be whole.
    torn: bool,
}

impl Output {
    /// Ends when there is nothing left to write and the log has another place.
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let patience = if self.place.losses.lines.load(Relaxed) > 0 { SECOND } else { DAY };
            let message = match messages.recv_timeout(patience) {
                Err(RecvTimeoutError::Disconnected) => return,
                message => message.ok(),
            };
            let mut result = self.recreate_if_removed().and_then(|()| self.report());
            if let Some(Message::Line(line)) = &message {
                self.place.waiting.fetch_sub(line.len(), Relaxed);
                result = result.and_then(|()| self.write(line));
                self.place.losses.lines.fetch_add(u64::from(result.is_err()), Relaxed);
            }
            if let Err(error) = result {
                self.complain(&error);
            }
            if let Some(Message::Flush(written)) = message {
                written.set();
            }
        }
    }

    /// An open file that was removed still accepts lines, but they are lost.
    fn recreate_if_removed(&mut self) -> io::Result<()> {
        if let LogTarget::File(path) = &self.place.target
            && self.file.metadata()?.nlink() == 0
        {
            self.file = open_file(path)?;
            self.torn = false;
        }
        Ok(())
    }

    /// Says how many lines were lost, if any were.
    fn report(&mut self) -> io::Result<()> {
        let lost = self.place.losses.lines.swap(0, Relaxed);
        if lost > 0 {
            let lines = if lost == 1 { "line was" } else { "lines were" };
            let message = format!("{lost} log {lines} lost: the log could not be written, or was too slow");
            self.write(&format_line(self.place.journal, Level::Warn, &message))
                .inspect_err(|_| _ = self.place.losses.lines.fetch_add(lost, Relaxed))?;
            self.place.losses.told.store(false, Relaxed);
        }
        Ok(())
    }

    /// Writes a line, behind a line end where the last one failed.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let start: &[u8] = if mem::replace(&mut self.torn, true) { b"\n" } else { b"" };
        self.file.write_all(&[start, line].concat())?;
        self.torn = false;
        Ok(())
    }

    /// Says once on standard error why lines are lost.
    fn complain(&mut self, error: &io::Error) {
        if !self.place.losses.told.swap(true, Relaxed)
            && let Ok(mut stderr) = open(&LogTarget::Stderr)
        {
            let name = name(&self.place.target);
            let text = format!("gearman-proxy: {name} can't be written: {error}; lines are lost until it can\n");
            let _ = stderr.write_all(text.as_bytes());
        }
    }
}

impl Log for Handle {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // Formatted before any lock is taken: a panic in a Display must find the log usable.
            let message = record.args().to_string();
            let current = self.current.lock().clone();
            current.push(format_line(current.place.journal, record.level(), &message));
        }
    }

    /// Waits until all lines are written, for a second at most.
    fn flush(&self) {
        let written = Latch::default();
        let _ = self.current.lock().thread.send(Message::Flush(written.clone()));
        written.wait(SECOND);
    }
}

fn format_line(journal: bool, level: Level, message: &str) -> Vec<u8> {
    // One message is one line, whatever is in it.
    let message = escaped_up_to(usize::MAX, message.as_bytes());
    if journal {
        let thread = thread::current().name().map_or(String::new(), |name| format!("({name}) "));
        return format!("<{}>{thread}{message}\n", priority(level)).into_bytes();
    }
    let mut config = ConfigBuilder::new();
    config
        .set_time_format_rfc3339()
        .set_thread_level(LevelFilter::Error)
        .set_thread_mode(ThreadLogMode::Names)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off);
    // For each line, because daylight saving time begins and ends. An error leaves UTC.
    let _ = config.set_time_offset_to_local();
    let line = Line::default();
    // log's own level, which can be changed, decides what is written.
    WriteLogger::new(LevelFilter::Trace, config.build(), line.clone())
        .log(&Record::builder().level(level).args(format_args!("{message}")).build());
    let line = String::from_utf8_lossy(&line.0.lock()).into_owned();
    let (time, rest) = line.split_once(' ').unwrap_or_default();
    format!("{} {rest}", local_time(time)).into_bytes()
}

/// `2026-11-24 15:04:05.123` of `2026-11-24T15:04:05.123456789+01:00`, whose fraction has as many digits as it needs. (A
/// format of our own for simplelog takes a macro that works only for those who depend on the crate `time`.)
fn local_time(rfc3339: &str) -> String {
    let (date, time) = rfc3339.split_once('T').unwrap_or_default();
    let (time, rest) = time.split_at_checked(8).unwrap_or_default();
    let fraction = rest.strip_prefix('.').unwrap_or_default().split(|c: char| !c.is_ascii_digit()).next();
    format!("{date} {time}.{:0<3.3}", fraction.unwrap_or_default())
}

/// A line's level as the journal reads it: `<PRIORITY>` before the message (sd-daemon(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Gathers what simplelog writes in pieces.
#[derive(Clone, Default)]
struct Line(Arc<Mutex<Vec<u8>>>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::path::PathBuf;

    use super::*;

    /// A logger of its own: the process's is one for all tests.
    fn logger(target: &LogTarget) -> Handle {
        Handle { current: Arc::new(Mutex::new(Open::at(target, Arc::default()).unwrap())) }
    }

    fn say(logger: &Handle, level: Level, message: &str) {
        log::set_max_level(LevelFilter::Info);
        logger.log(&Record::builder().level(level).args(format_args!("{message}")).build());
        logger.flush();
    }

    /// A folder for the files of a test, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("gearman-proxy-log-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        fn log(&self) -> PathBuf {
            self.0.join("proxy.log")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What would be the journal.
    fn output(target: LogTarget, file: File) -> Output {
        let place = Place { target, journal: true, waiting: AtomicUsize::new(0), losses: Arc::default() };
        Output { place: Arc::new(place), file, torn: false }
    }

    fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "still not so: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn matches(form: &str, text: &str) -> bool {
        regex::bytes::RegexBuilder::new(form).unicode(false).build().unwrap().is_match(text.as_bytes())
    }

    #[test]
    fn a_line_holds_local_time_level_thread_and_message() {
        let scratch = Scratch::new("form");
        let logger = logger(&LogTarget::File(scratch.log()));
        thread::Builder::new()
            .name(String::from("queue/reader"))
            .spawn(move || say(&logger, Level::Warn, "destination down"))
            .unwrap()
            .join()
            .unwrap();
        let text = fs::read_to_string(scratch.log()).unwrap();
        let form = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[WARN\] \(queue/reader\) destination down\n$";
        assert!(matches(form, &text), "{text}");
        assert_eq!(fs::metadata(scratch.log()).unwrap().mode() & 0o777 & !0o640, 0, "others may not read it");
    }

    #[test]
    fn milliseconds_have_three_digits() {
        for (rfc3339, shown) in [
            ("2026-11-24T15:04:05.123456789+01:00", "2026-11-24 15:04:05.123"),
            ("2026-11-24T15:04:05.02-03:30", "2026-11-24 15:04:05.020"),
            ("2026-11-24T15:04:05Z", "2026-11-24 15:04:05.000"),
        ] {
            assert_eq!(local_time(rfc3339), shown);
        }
    }

    #[test]
    fn a_file_is_appended_to_and_opened_again_after_it_was_moved() {
        let scratch = Scratch::new("reopened");
        let (path, moved) = (scratch.log(), scratch.0.join("moved"));
        fs::write(&path, "before\n").unwrap();
        let logger = logger(&LogTarget::File(path.clone()));
        say(&logger, Level::Info, "one");
        fs::rename(&path, &moved).unwrap();
        say(&logger, Level::Info, "two");
        logger.set_target(&LogTarget::File(path.clone())).unwrap();
        say(&logger, Level::Info, "three");
        let lines = |path: &PathBuf| -> Vec<String> {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(lines(&moved), ["before", "one", "two"]);
        assert_eq!(lines(&path), ["three"]);
    }

    #[test]
    fn a_target_that_cannot_be_opened_leaves_the_old_one() {
        let scratch = Scratch::new("kept");
        let logger = logger(&LogTarget::File(scratch.log()));
        for (path, reason) in [
            (PathBuf::from("/nonexistent/logs/proxy.log"), "folder /nonexistent does not exist"),
            (scratch.0.join("logs/proxy.log"), "/logs does not exist"),
            (scratch.0.clone(), "it is not a regular file"),
            (PathBuf::from("/dev/null/proxy.log"), "Not a directory"),
        ] {
            let error = logger.set_target(&LogTarget::File(path.clone())).unwrap_err().to_string();
            let begin = format!("log file {} can't be opened: ", path.display());
            assert!(error.starts_with(&begin) && error.contains(reason), "{error}");
        }
        say(&logger, Level::Info, "still here");
        assert!(fs::read_to_string(scratch.log()).unwrap().ends_with("still here\n"));
    }

    #[test]
    fn a_fifo_is_an_error_and_never_a_wait() {
        let scratch = Scratch::new("fifo");
        assert!(std::process::Command::new("mkfifo").arg(scratch.log()).status().unwrap().success());
        let open = || Open::at(&LogTarget::File(scratch.log()), Arc::default()).unwrap_err().to_string();
        assert!(open().contains("it is not a regular file"), "{}", open());
        // With a reader its opening would succeed.
        let _reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(scratch.log()).unwrap();
        assert!(open().contains("it is not a regular file"), "{}", open());
    }

    #[test]
    fn a_full_disk_stops_nothing_and_what_it_took_no_more_is_counted() {
        let scratch = Scratch::new("full");
        let logger = logger(&LogTarget::File("/dev/full".into()));
        say(&logger, Level::Error, "one");
        // Opened again without more space: the count is kept.
        logger.set_target(&LogTarget::File("/dev/full".into())).unwrap();
        say(&logger, Level::Error, "two");
        assert!(logger.current.lock().place.losses.told.load(Relaxed));
        logger.set_target(&LogTarget::File(scratch.log())).unwrap();
        say(&logger, Level::Error, "three");
        let text = fs::read_to_string(scratch.log()).unwrap();
        let form = r"^[^\n]*\[WARN\] \(log\) 2 log lines were lost: the log could not be written, or was too slow\n[^\n]* three\n$";
        assert!(matches(form, &text), "{text}");
        assert!(!logger.current.lock().place.losses.told.load(Relaxed));
    }

    #[test]
    fn a_line_after_one_that_was_torn_begins_at_a_line_of_its_own() {
        let scratch = Scratch::new("torn");
        let target = LogTarget::File("/dev/full".into());
        let file = open(&target).unwrap();
        let mut output = output(target, file);
        assert!(output.write(b"one\n").is_err());
        output.file = File::create(scratch.log()).unwrap();
        output.write(b"two\n").unwrap();
        output.write(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(scratch.log()).unwrap(), "\ntwo\nthree\n");
    }

    #[test]
    fn a_file_that_was_removed_is_made_again_and_so_is_one_whose_folder_comes_back() {
        let scratch = Scratch::new("removed");
        let folder = scratch.0.join("logs");
        let path = folder.join("proxy.log");
        fs::create_dir(&folder).unwrap();
        let logger = logger(&LogTarget::File(path.clone()));
        say(&logger, Level::Info, "one");
        fs::remove_file(&path).unwrap();
        say(&logger, Level::Info, "two");
        assert!(fs::read_to_string(&path).unwrap().ends_with("two\n"));
        fs::remove_dir_all(&folder).unwrap();
        say(&logger, Level::Info, "three");
        say(&logger, Level::Info, "four");
        fs::create_dir(&folder).unwrap();
        // Without another line.
        wait_for("the count of lost lines", || fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n')));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(" (log) 2 log lines were lost: the log "), "{text}");
    }

    #[test]
    fn a_pipe_that_nobody_reads_blocks_nobody_and_what_it_lost_is_told() {
        let (mut reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let current = Open::start(output(LogTarget::Stdout, file)).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..5000 {
            current.push(line.clone());
        }
        assert!(current.place.waiting.load(Relaxed) > QUEUE_SIZE - line.len(), "the pipe holds 64 KiB");
        let began = Instant::now();
        let logger = Handle { current: Arc::new(Mutex::new(current)) };
        logger.flush();
        assert!(began.elapsed() >= SECOND, "nobody reads");
        drop(logger);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let written = text.lines().filter(|line| line.starts_with('x')).count();
        let told =
            text.lines().filter_map(|line| line.split_once(" log lines were lost: the log could not be written, "));
        let lost: Vec<usize> = told.map(|(line, _)| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(written + lost.iter().sum::<usize>(), 5000, "{lost:?}");
        assert!(lost.iter().sum::<usize>() > 1000, "{lost:?}");
    }

    #[test]
    fn the_level_is_that_of_the_log_crate() {
        let scratch = Scratch::new("level");
        let logger = logger(&LogTarget::File(scratch.log()));
        say(&logger, Level::Debug, "not written");
        assert_eq!(fs::read_to_string(scratch.log()).unwrap(), "");
    }

    #[test]
    fn a_panic_while_a_message_is_made_leaves_the_log_usable() {
        struct Bad;
        impl fmt::Display for Bad {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("bad message")
            }
        }
        let scratch = Scratch::new("panic");
        let logger = logger(&LogTarget::File(scratch.log()));
        log::set_max_level(LevelFilter::Info);
        let made = panic::catch_unwind(panic::AssertUnwindSafe(|| {
            logger.log(&Record::builder().level(Level::Info).args(format_args!("{}", Bad)).build());
        }));
        assert!(made.is_err());
        say(&logger, Level::Info, "usable");
        assert!(fs::read_to_string(scratch.log()).unwrap().ends_with("usable\n"));
    }

    #[test]
    fn a_message_is_one_line() {
        let scratch = Scratch::new("line");
        let logger = logger(&LogTarget::File(scratch.log()));
        say(&logger, Level::Info, "a\nb\x1b[2J\u{202e}");
        let text = fs::read_to_string(scratch.log()).unwrap();
        assert!(text.ends_with("a\\x0ab\\x1b[2J\\u{202e}\n"), "{text}");
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        assert_eq!([Level::Error, Level::Warn, Level::Info, Level::Trace].map(priority), [3, 4, 6, 7]);
        let line = thread::spawn(|| format_line(true, Level::Info, "x\ny")).join().unwrap();
        assert_eq!(line, b"<6>x\\x0ay\n", "a thread without a name");
        let scratch = Scratch::new("journal");
        let log = Open::start(output(LogTarget::Stderr, File::create(scratch.log()).unwrap())).unwrap();
        let logger = Handle { current: Arc::new(Mutex::new(log)) };
        thread::Builder::new()
            .name(String::from("status"))
            .spawn(move || say(&logger, Level::Error, "down"))
            .unwrap()
            .join()
            .unwrap();
        assert_eq!(fs::read_to_string(scratch.log()).unwrap(), "<3>(status) down\n");
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        let scratch = Scratch::new("stream");
        let file = File::create(scratch.log()).unwrap();
        let there = file.metadata().unwrap();
        assert!(is_stream(&file, &format!("{}:{}", there.dev(), there.ino())));
        assert!(!is_stream(&file, &format!("{}:{}", there.dev(), there.ino() + 1)));
        assert!(!is_stream(&file, ""));
        assert!(!is_stream(&file, "8:x"));
    }

    #[test]
    fn what_comes_from_outside_is_printable_and_short() {
        for (bytes, shown) in [
            (&b"host_name=web1~"[..], "host_name=web1~"),
            (b"a\nb\x1b[2J\0\x7f\xfc", "a\\x0ab\\x1b[2J\\x00\\x7f\\xfc"),
            ("M\u{fc}nchen \u{65e5}\u{672c}".as_bytes(), "M\u{fc}nchen \u{65e5}\u{672c}"),
            ("\u{85}\u{a0}\u{ad}".as_bytes(), "\\u{85}\\u{a0}\\u{ad}"),
            ("x\u{301}".as_bytes(), "x\\u{301}"),
            ("'\"\\".as_bytes(), "'\"\\"),
        ] {
            assert_eq!(escaped(bytes).to_string(), shown);
        }
        for c in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}').chain('\u{200b}'..='\u{200f}') {
            assert_eq!(escaped(format!("a{c}b").as_bytes()).to_string(), format!("a\\u{{{:x}}}b", u32::from(c)));
        }
        assert_eq!(escaped(&[b'x'; 200]).to_string(), "x".repeat(200));
        assert_eq!(escaped(&[b'x'; 201]).to_string(), format!("{}...", "x".repeat(200)));
        assert_eq!(escaped("\u{fc}".repeat(101).as_bytes()).to_string(), format!("{}...", "\u{fc}".repeat(100)));
        assert_eq!(escaped(&[0xff; 201]).to_string(), format!("{}...", "\\xff".repeat(200)));
    }

    #[test]
    fn messages_of_one_kind_are_limited_and_none_is_forgotten() {
        let (start, mut limiter) = (Instant::now(), Limiter::default());
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(limiter.admit(after(0), 1), Some(0));
        assert_eq!(limiter.due(after(60_000)), None);
        assert!((1..200).all(|n| limiter.admit(after(n), 1).is_none()));
        assert_eq!(limiter.due(after(5198)), None);
        assert_eq!((limiter.due(after(5199)), limiter.due(after(5200))), (Some(199), None));
        // A flood: a line a second, each with the number of those before it.
        let written: Vec<_> = (0..2500).filter_map(|n| limiter.admit(after(10_000 + n), 1)).collect();
        assert_eq!(written, [0, 999, 999]);
        assert_eq!((limiter.due(after(60_000)), limiter.due(after(60_000))), (Some(499), None));
    }
}
