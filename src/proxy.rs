//! All forwards of the process: started, reloaded on SIGHUP, stopped on SIGTERM and SIGINT.

mod finder;

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use log::{LevelFilter, error, info, log, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::cli::Cli;
use crate::config::{self, Address, Config, ForwardConfig, LogTarget, Server};
use crate::forward::{Common, Forward, Legacy};
use crate::logging;
use crate::metrics::{ForwardMetrics, Metrics};
use crate::notify::Notifier;
use crate::outages::Lost;
use crate::pidfile::PidFile;
use crate::sandbox;
use crate::status::{self, StatusWorker};
use finder::{Finder, Finding, Known};

/// All of a stop takes ten seconds; what has not ended then is left behind.
const STOP: Duration = Duration::from_millis(10_500);

/// Between looks at whether the forwards have stopped.
const STOP_LOOK: Duration = Duration::from_millis(10);

/// A second signal so soon after the first is the same one: `timeout` and some shells send it to a process and its group.
const SAME_SIGNAL: Duration = Duration::from_millis(50);

/// Between updates of what `systemctl status` shows.
const NOTIFY_EVERY: Duration = Duration::from_secs(10);

/// After a second signal the main thread has this much to end the process in order; then the signal thread ends it.
const SECOND_SIGNAL: Duration = Duration::from_millis(200);

/// Between looks at what else the main thread does while it waits for a signal.
const TICK: Duration = Duration::from_millis(200);

/// Between tries to start forwards for which the system had no threads.
const START_AGAIN: Duration = Duration::from_secs(10);

/// The running proxy.
struct Proxy<'c> {
    cli: &'c Cli,
    config: Arc<Config>,
    common: Common,
    log: logging::Handle,
    pidfile: Option<PidFile>,
    metrics: Arc<Metrics>,
    /// Those that there are to be, in the order of the configuration, then those that were found.
    forwards: Vec<Wanted>,
    /// Stopping, and no longer wanted as they are.
    leaving: Vec<Forward>,
    /// What those knew that have ended, for the one that comes back for its source: e.g. which jobs it has delivered.
    legacies: HashMap<Address, Legacy>,
    finder: Option<Finder>,
    known: Known,
    /// The forwards that were found, by server.
    found: HashMap<Server, Vec<ForwardConfig>>,
    status: Option<StatusWorker>,
    notifier: Notifier,
    notified: Instant,
    /// When to try again what the system had no thread for.
    start_again: Option<Instant>,
    /// The thread that is stuck, which is logged once.
    stuck: Option<String>,
}

/// A forward that there is to be. It runs as soon as the one before it has ended, and the system has threads for it.
struct Wanted {
    metrics: Arc<ForwardMetrics>,
    running: Option<Forward>,
}

/// Runs the forwards of a configuration until a signal ends it.
///
/// # Errors
/// The proxy could not start, or a second signal came before it had stopped.
pub fn run(cli: &Cli, config: Config) -> io::Result<()> {
    let log = logging::init(log_target(cli, &config), log_level(cli, &config))?;
    let ended = run_logged(cli, config, &log);
    log::logger().flush();
    ended
}

fn run_logged(cli: &Cli, config: Config, log: &logging::Handle) -> io::Result<()> {
    // Before the pid file: a reader of it may send a signal at once.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let pidfile = pidfile(cli, &config)?;
    // Whatever needs a system call that is refused from here on is done; the log's thread gets the filter too.
    if let Err(reason) = sandbox::apply() {
        warn!("the kernel does not restrict this process: {reason}; running without its seccomp filter");
    }
    let signals = received(signals)?;
    let mut common = Common::default();
    common.max_job_size = config.max_job_size;
    common.start_clock()?;
    let mut proxy = Proxy {
        cli,
        config: Arc::new(config),
        common,
        log: log.clone(),
        pidfile,
        metrics: Arc::default(),
        forwards: Vec::new(),
        leaving: Vec::new(),
        legacies: HashMap::new(),
        finder: None,
        known: Known::default(),
        found: HashMap::new(),
        status: None,
        notifier: Notifier::from_environment(),
        notified: Instant::now(),
        start_again: None,
        stuck: None,
    };
    proxy.start();
    proxy.wait(&signals)?;
    proxy.stop(&signals)
}

fn log_target<'c>(cli: &'c Cli, config: &'c Config) -> &'c LogTarget {
    cli.logfile.as_ref().unwrap_or(&config.logfile)
}

fn log_level(cli: &Cli, config: &Config) -> LevelFilter {
    match cli.debug.unwrap_or(config.debug) {
        _ if cli.quiet => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    }
}

fn pidfile(cli: &Cli, config: &Config) -> io::Result<Option<PidFile>> {
    cli.pidfile.as_ref().or(config.pidfile.as_ref()).map(|path| PidFile::create(path)).transpose()
}

/// A channel of the signals that are meant for us. At the second SIGTERM or SIGINT its thread ends the process by itself, so
/// that nothing that blocks, neither the main thread nor the log, can keep it.
fn received(mut signals: Signals) -> io::Result<Receiver<i32>> {
    let (sender, receiver) = unbounded();
    thread::Builder::new().name("signals".to_string()).spawn(move || {
        let mut first: Option<Instant> = None;
        for signal in &mut signals {
            let second = signal != SIGHUP && first.get_or_insert_with(Instant::now).elapsed() > SAME_SIGNAL;
            // It fails only when the main thread is about to end the process.
            let _ = sender.send(signal);
            if second {
                thread::sleep(SECOND_SIGNAL);
                // Without exit handlers, which may wait for a lock.
                low_level::exit(1);
            }
        }
    })?;
    Ok(receiver)
}

impl Proxy<'_> {
    fn start(&mut self) {
        self.warn();
        info!("gearman-proxy {} starts with {}", env!("CARGO_PKG_VERSION"), self.count());
        self.arrange(true);
        self.start_all(Instant::now());
        self.notifier.ready(&self.summary());
    }

    fn count(&self) -> String {
        let patterns = match self.config.patterns.len() {
            0 => String::new(),
            1 => " and 1 pattern".to_owned(),
            count => format!(" and {count} patterns"),
        };
        match self.config.forwards.len() {
            1 => format!("1 forward{patterns}"),
            count => format!("{count} forwards{patterns}"),
        }
    }

    fn warn(&self) {
        for warning in self.config.warnings.iter().chain(&self.config.open_files_warning()) {
            warn!("{warning}");
        }
    }

    fn summary(&self) -> String {
        status::summary(&self.metrics)
    }

    /// Makes the forwards those that there are to be: unchanged ones continue, with their counters; the others stop, each by
    /// itself, and [`Self::start_all`] starts the new ones.
    fn arrange(&mut self, same_limits: bool) {
        let mut former: HashMap<Address, Wanted> =
            self.forwards.drain(..).map(|wanted| (wanted.metrics.config.source.clone(), wanted)).collect();
        for config in self.config.forwards.iter().chain(self.found.values().flatten()) {
            self.forwards.push(match former.remove(&config.source) {
                Some(wanted) if same_limits && wanted.metrics.config == *config => wanted,
                changed => {
                    self.leaving.extend(changed.and_then(|wanted| wanted.running));
                    Wanted { metrics: Arc::new(ForwardMetrics::new(config)), running: None }
                }
            });
        }
        self.leaving.extend(former.into_values().filter_map(|wanted| wanted.running));
        self.leaving.iter().for_each(Forward::stop);
        self.metrics.set_forwards(self.forwards.iter().map(|wanted| Arc::clone(&wanted.metrics)).collect());
    }

    /// Starts what there is to be and does not run yet. What the system has no thread for is tried again later.
    fn start_all(&mut self, now: Instant) {
        for forward in self.leaving.extract_if(.., |forward| forward.is_finished()) {
            let source = forward.metrics().config.source.clone();
            let legacy = forward.join();
            if !legacy.is_empty() {
                self.legacies.insert(source, legacy);
            }
        }
        if self.start_again.is_some_and(|at| at > now) {
            return;
        }
        let mut failed: Option<(String, io::Error)> = None;
        // First: it needs a connection also when descriptors run out.
        if self.status.is_none() {
            let (queue, file) = (self.config.statusqueue.clone(), self.config.metricsfile.clone());
            match StatusWorker::start(queue, file, Arc::clone(&self.metrics)) {
                Ok(status) => self.status = Some(status),
                Err(error) => failed = Some(("the status".to_owned(), error)),
            }
        }
        let leaving: HashSet<&Address> = self.leaving.iter().map(|forward| &forward.metrics().config.source).collect();
        for Wanted { metrics, running } in self.forwards.iter_mut().filter(|wanted| wanted.running.is_none()) {
            let source = &metrics.config.source;
            if leaving.contains(source) {
                continue;
            }
            let legacy = self.legacies.remove(source).unwrap_or_default();
            match Forward::start(&self.common, Arc::clone(metrics), legacy) {
                Ok(forward) => *running = Some(forward),
                Err(failure) => {
                    let (error, legacy) = *failure;
                    self.legacies.insert(source.clone(), legacy);
                    failed.get_or_insert_with(|| (format!("forward {source}"), error));
                }
            }
        }
        if self.finder.is_none() && !self.config.patterns.is_empty() {
            match Finder::start(&self.config) {
                Ok(finder) => self.finder = Some(finder),
                Err(error) => failed = failed.or(Some(("the queues of patterns".to_owned(), error))),
            }
        }
        if let (None, Some((what, error))) = (self.start_again, &failed) {
            error!("no thread for {what}: {error}; trying again every {} s", START_AGAIN.as_secs());
        }
        self.start_again = failed.map(|_| now + START_AGAIN);
    }

    /// Runs until a signal asks for the end.
    fn wait(&mut self, signals: &Receiver<i32>) -> io::Result<()> {
        loop {
            let tick = if self.leaving.is_empty() { TICK } else { STOP_LOOK };
            match signals.recv_timeout(tick) {
                Ok(SIGHUP) => self.reload(),
                Ok(signal) => {
                    info!("{} received, stopping", if signal == SIGINT { "SIGINT" } else { "SIGTERM" });
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            self.tick(Instant::now());
        }
    }

    fn tick(&mut self, now: Instant) {
        self.tell_outages(now);
        self.common.tell(now);
        let stuck = self.notifier.feed(&self.common.heartbeats, now).err();
        if stuck.is_some() && stuck != self.stuck {
            error!("thread {} is stuck; systemd will restart the service", stuck.as_deref().unwrap_or_default());
        }
        self.stuck = stuck;
        if now.duration_since(self.notified) >= NOTIFY_EVERY {
            self.notifier.status(&self.summary());
            self.notified = now;
            self.common.look();
        }
        let findings: Vec<_> = self.finder.iter().flat_map(Finder::findings).collect();
        let news: Vec<bool> = findings.into_iter().map(|finding| self.take_in(finding, now)).collect();
        if news.contains(&true) {
            self.arrange(true);
        }
        self.start_all(now);
    }

    fn tell_outages(&self, now: Instant) {
        let lines = self.common.outages.lock().lines(now);
        for (level, text) in lines {
            log!(level, "{text}");
        }
    }

    /// Whether a server's queues ask for other forwards than before.
    fn take_in(&mut self, Finding { server, queues }: Finding, now: Instant) -> bool {
        let asker = format!("patterns of {server}");
        match queues {
            Ok(queues) => {
                self.common.outages.lock().back(&server.to_string(), &asker, 0, now);
                self.metrics.set_patterns(&server, Ok(queues.found.errors.first().map(ToString::to_string)));
                let wanted = self.known.update(&server, &queues, now);
                self.found.insert(server, wanted.clone()).unwrap_or_default() != wanted
            }
            Err(error) => {
                self.metrics.set_patterns(&server, Err(&error.to_string()));
                let lost = Lost {
                    server: server.to_string(),
                    role: "source",
                    kind: error.kind(),
                    reason: format!("{error} ({})", error.advice()),
                    forward: asker,
                    next: format!("asking for its queues again in {} s", finder::AGAIN.as_secs()),
                };
                self.common.outages.lock().lost(&lost, now);
                false
            }
        }
    }

    /// Reads the configuration again. After errors the old one stays.
    fn reload(&mut self) {
        self.notifier.reloading();
        match config::load(&self.cli.config) {
            Ok(config) => {
                self.metrics.set_configuration_wrong(false);
                self.take_over(config);
            }
            Err(errors) => {
                self.metrics.set_configuration_wrong(true);
                for line in errors.to_string().lines() {
                    error!("{line}");
                }
                error!("reload failed: the new configuration has errors; still running with the old one");
                // Opened again: logrotate may have moved it.
                log_error(self.log.set_target(log_target(self.cli, &self.config)));
            }
        }
        self.notifier.ready(&self.summary());
    }

    fn take_over(&mut self, config: Config) {
        let former = std::mem::replace(&mut self.config, Arc::new(config));
        self.common.max_job_size = self.config.max_job_size;
        log_error(self.log.set_target(log_target(self.cli, &self.config)));
        log::set_max_level(log_level(self.cli, &self.config));
        info!("reloading with {}", self.count());
        self.warn();
        if self.cli.pidfile.is_none() && former.pidfile != self.config.pidfile {
            match pidfile(self.cli, &self.config) {
                Ok(pidfile) => self.pidfile = pidfile,
                Err(error) => error!("{error}"),
            }
        }
        // Those that still match continue until the servers are asked again.
        self.metrics.clear_patterns();
        for (server, forwards) in &mut self.found {
            self.common.outages.lock().gone(&format!("patterns of {server}"));
            let queues: Vec<String> = forwards.iter().map(|forward| forward.source.queue.clone()).collect();
            *forwards = self.config.found_forwards(server, queues.iter().map(String::as_str)).forwards;
        }
        self.finder = None;
        if (&former.statusqueue, &former.metricsfile) != (&self.config.statusqueue, &self.config.metricsfile) {
            self.status = None;
        }
        self.arrange(former.max_job_size == self.config.max_job_size);
        self.start_again = None;
        self.start_all(Instant::now());
    }

    /// Stops every forward, as far as its time allows. A second signal ends it at once.
    fn stop(mut self, signals: &Receiver<i32>) -> io::Result<()> {
        self.notifier.stopping();
        self.finder = None;
        let running = self.forwards.drain(..).filter_map(|wanted| wanted.running);
        let mut left: Vec<Forward> = running.chain(self.leaving.drain(..)).collect();
        left.iter().for_each(Forward::stop);
        let began = Instant::now();
        while !left.is_empty() && began.elapsed() < STOP {
            match signals.recv_timeout(STOP_LOOK) {
                Ok(SIGTERM | SIGINT) if began.elapsed() > SAME_SIGNAL => {
                    return Err(io::Error::other("stopped at once by a second signal"));
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            left.retain(|forward| !forward.is_finished());
        }
        for metrics in left.iter().map(Forward::metrics) {
            let (source, held) = (&metrics.config.source, metrics.counts.lock().held);
            warn!("forward from {source} has not stopped in time; {held} unacknowledged jobs return to the source");
        }
        self.tell_outages(Instant::now());
        self.status = None;
        drop(self.pidfile.take());
        info!("stopped");
        Ok(())
    }
}

fn log_error(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        error!("{error}");
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, id};

    use super::*;

    #[test]
    fn a_second_signal_ends_the_process_whatever_blocks() {
        const CHILD: &str = "GEARMAN_PROXY_TEST_SIGNALS";
        if std::env::var_os(CHILD).is_some() {
            let _received = received(Signals::new([SIGTERM, SIGINT, SIGHUP]).unwrap()).unwrap();
            eprintln!("waiting");
            loop {
                thread::park();
            }
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "proxy::tests::a_second_signal_ends_the_process_whatever_blocks", "--nocapture"])
            .env(CHILD, id().to_string())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut waiting = [0; 7];
        io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut waiting).unwrap();
        let mut send = |signal| {
            Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
            thread::sleep(SAME_SIGNAL * 2 + SECOND_SIGNAL);
            child.try_wait().unwrap()
        };
        // One and a SIGHUP are not a second one.
        assert_eq!((send("TERM"), send("HUP")), (None, None));
        let began = Instant::now();
        let status = loop {
            match send("INT") {
                Some(status) => break status,
                None => assert!(began.elapsed() < Duration::from_secs(30)),
            }
        };
        assert_eq!(status.code(), Some(1));
    }
}
