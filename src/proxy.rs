//! All forwards of the process: started, reloaded on SIGHUP, stopped on SIGTERM and SIGINT.

mod finder;

use std::collections::HashMap;
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
use crate::forward::{Common, Forward, Legacy, Predecessor};
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
    /// In the order of the configuration, then those that were found.
    forwards: Vec<Forward>,
    /// Stopping or stopped, and no longer wanted; which jobs it has delivered is known to the one that comes back for its
    /// source.
    leaving: Vec<Forward>,
    /// The same of those that have ended.
    legacies: HashMap<Address, Box<Legacy>>,
    finder: Option<Finder>,
    known: Known,
    /// The forwards that were found, by server.
    found: HashMap<Server, Vec<ForwardConfig>>,
    status: Option<StatusWorker>,
    notifier: Notifier,
    notified: Instant,
    /// When forwards that could not be started are tried again.
    start_again: Option<Instant>,
    /// The thread that is stuck, which is logged once.
    stuck: Option<String>,
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
    proxy.start()?;
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
    fn start(&mut self) -> io::Result<()> {
        self.warn();
        info!("gearman-proxy {} starts with {}", env!("CARGO_PKG_VERSION"), self.count());
        // It must not tell of a proxy without forwards.
        let prepared = self.config.forwards.iter().map(|config| Arc::new(ForwardMetrics::new(config))).collect();
        self.metrics.set_forwards(prepared);
        // First: it needs a connection also when descriptors run out.
        self.start_status()?;
        self.arrange_forwards(self.common.max_job_size);
        self.start_finder();
        self.notifier.ready(&self.summary());
        Ok(())
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

    fn start_status(&mut self) -> io::Result<()> {
        let (queue, file) = (self.config.statusqueue.clone(), self.config.metricsfile.clone());
        self.status = Some(StatusWorker::start(queue, file, Arc::clone(&self.metrics))?);
        Ok(())
    }

    fn start_finder(&mut self) {
        self.finder = None;
        if !self.config.patterns.is_empty() {
            match Finder::start(&self.config) {
                Ok(finder) => self.finder = Some(finder),
                Err(error) => {
                    let again = START_AGAIN.as_secs();
                    error!("no thread that finds the queues of patterns: {error}; trying again in {again} s");
                    self.start_again = Some(Instant::now() + START_AGAIN);
                }
            }
        }
    }

    fn summary(&self) -> String {
        status::summary(&self.metrics)
    }

    /// Makes the running forwards those that there are to be: unchanged ones continue, with their counters; the others stop, each
    /// by itself, and start again.
    fn arrange_forwards(&mut self, former_max_job_size: usize) {
        self.start_again = None;
        let mut running: Vec<Option<Forward>> = self.forwards.drain(..).map(Some).collect();
        let prepared = if running.is_empty() { self.metrics.forwards() } else { Vec::new() };
        let same_settings = former_max_job_size == self.common.max_job_size;
        let found = self.found.values().flatten();
        let wanted: Vec<&ForwardConfig> = self.config.forwards.iter().chain(found).collect();
        let mut by_source: HashMap<_, usize> = HashMap::new();
        for (position, forward) in running.iter().flatten().enumerate() {
            by_source.insert(forward.metrics().config.source.clone(), position);
        }
        let mut arranged: Vec<Option<Forward>> = Vec::new();
        for config in &wanted {
            let position = by_source.get(&config.source).copied();
            let place = position.and_then(|position| running.get_mut(position)).filter(|forward| {
                same_settings && forward.as_ref().is_some_and(|forward| forward.metrics().config == **config)
            });
            arranged.push(place.and_then(Option::take));
        }
        running.iter().flatten().for_each(Forward::stop);
        self.leaving.extend(running.into_iter().flatten());
        for (config, forward) in wanted.into_iter().zip(arranged) {
            if let Some(unchanged) = forward {
                self.forwards.push(unchanged);
                continue;
            }
            let predecessor = self.leaving.iter().position(|forward| forward.metrics().config.source == config.source);
            let predecessor = match (predecessor, self.legacies.remove(&config.source)) {
                (Some(position), _) => Predecessor::Stopping(self.leaving.swap_remove(position)),
                (None, Some(legacy)) => Predecessor::Ended(legacy),
                (None, None) => Predecessor::None,
            };
            let metrics = prepared.iter().find(|metrics| metrics.config == *config).cloned();
            let metrics = metrics.unwrap_or_else(|| Arc::new(ForwardMetrics::new(config)));
            match Forward::start(&self.common, metrics, predecessor) {
                Ok(forward) => self.forwards.push(forward),
                Err((error, predecessor)) => {
                    match predecessor {
                        Predecessor::Stopping(forward) => self.leaving.push(forward),
                        Predecessor::Ended(legacy) => drop(self.legacies.insert(config.source.clone(), legacy)),
                        Predecessor::None => {}
                    }
                    if self.start_again.is_none() {
                        error!(
                            "no thread for forward {}: {error}; trying again in {} s",
                            config.source,
                            START_AGAIN.as_secs()
                        );
                    }
                    self.start_again = Some(Instant::now() + START_AGAIN);
                }
            }
        }
        self.metrics.set_forwards(self.forwards.iter().map(|forward| Arc::clone(forward.metrics())).collect());
    }

    /// Runs until a signal asks for the end.
    fn wait(&mut self, signals: &Receiver<i32>) -> io::Result<()> {
        loop {
            match signals.recv_timeout(TICK) {
                Ok(SIGHUP) => self.reload()?,
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

    fn tell_outages(&self, now: Instant) {
        let lines = self.common.outages.lock().lines(now);
        for (level, text) in lines {
            log!(level, "{text}");
        }
    }

    fn tick(&mut self, now: Instant) {
        self.tell_outages(now);
        let stuck = self.notifier.feed(&self.common.heartbeats, now).err();
        if stuck.is_some() && stuck != self.stuck {
            error!("thread {} is stuck; systemd will restart the service", stuck.as_deref().unwrap_or_default());
        }
        self.stuck = stuck;
        if now.duration_since(self.notified) >= NOTIFY_EVERY {
            self.notifier.status(&self.summary());
            self.notified = now;
            self.common.look();
            let (ended, leaving): (Vec<_>, Vec<_>) = self.leaving.drain(..).partition(Forward::is_finished);
            self.leaving = leaving;
            for forward in ended {
                let source = forward.metrics().config.source.clone();
                let legacy = forward.join();
                if !legacy.is_empty() {
                    self.legacies.insert(source, Box::new(legacy));
                }
            }
        }
        let findings: Vec<_> = self.finder.iter().flat_map(Finder::findings).collect();
        let mut news = self.start_again.is_some_and(|at| at <= now);
        for Finding { server, queues } in findings {
            let asker = format!("patterns of {server}");
            match queues {
                Ok(queues) => {
                    self.common.outages.lock().back(&server.to_string(), &asker, 0, now);
                    let too_many = queues.found.errors.first().map(ToString::to_string);
                    self.metrics.set_patterns(&server, Ok(too_many));
                    let wanted = self.known.update(&server, &queues, now);
                    news |= self.found.insert(server, wanted.clone()).unwrap_or_default() != wanted;
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
                }
            }
        }
        if news {
            self.arrange_forwards(self.common.max_job_size);
            if self.finder.is_none() {
                self.start_finder();
            }
        }
    }

    /// Reads the configuration again. After errors the old one stays.
    fn reload(&mut self) -> io::Result<()> {
        self.notifier.reloading();
        match config::load(&self.cli.config) {
            Ok(config) => {
                self.metrics.set_configuration_wrong(false);
                self.take_over(config)?;
            }
            Err(errors) => {
                self.metrics.set_configuration_wrong(true);
                for line in errors.to_string().lines() {
                    error!("{line}");
                }
                error!("reload failed: the new configuration has errors; still running with the old one");
                // Opened again: logrotate may have moved it.
                if let Err(error) = self.log.set_target(log_target(self.cli, &self.config)) {
                    error!("{error}");
                }
            }
        }
        self.notifier.ready(&self.summary());
        Ok(())
    }

    fn take_over(&mut self, config: Config) -> io::Result<()> {
        let former = std::mem::replace(&mut self.config, Arc::new(config));
        let former_max_job_size = std::mem::replace(&mut self.common.max_job_size, self.config.max_job_size);
        if let Err(error) = self.log.set_target(log_target(self.cli, &self.config)) {
            error!("{error}");
        }
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
        self.arrange_forwards(former_max_job_size);
        self.start_finder();
        if former.statusqueue != self.config.statusqueue || former.metricsfile != self.config.metricsfile {
            self.status = None;
            self.start_status()?;
        }
        Ok(())
    }

    /// Stops every forward, as far as its time allows. A second signal ends it at once.
    fn stop(mut self, signals: &Receiver<i32>) -> io::Result<()> {
        self.notifier.stopping();
        self.finder = None;
        self.forwards.iter().for_each(Forward::stop);
        let began = Instant::now();
        let mut left: Vec<Forward> = self.forwards.drain(..).chain(self.leaving.drain(..)).collect();
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
        for forward in &left {
            let metrics = forward.metrics();
            let (held, config) = (metrics.counts.lock().held, &metrics.config);
            warn!(
                "forward from {} has not stopped in time; {held} unacknowledged jobs return to the source",
                config.source
            );
        }
        self.tell_outages(Instant::now());
        self.status = None;
        drop(self.pidfile.take());
        info!("stopped");
        Ok(())
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
