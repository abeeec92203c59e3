//! All forwards of the process: started, reloaded on SIGHUP, stopped on SIGTERM and SIGINT.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use log::{LevelFilter, error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::Cli;
use crate::config::{self, Config, LogTarget};
use crate::forward::{Forward, Settings};
use crate::logging::{self, LogError};
use crate::metrics::{ForwardMetrics, Metrics};
use crate::notify::Notifier;
use crate::pidfile::{PidFile, PidFileError};
use crate::status::{self, StatusWorker};

/// After the time that forwards have to stop and to say goodbye, those whose source hangs are given this much.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// Between looks at whether the forwards have stopped.
const STOP_LOOK: Duration = Duration::from_millis(10);

/// A second signal so soon after the first is the same one: `timeout` and some shells send it to a process and its group.
const SAME_SIGNAL: Duration = Duration::from_millis(50);

/// Between updates of what `systemctl status` shows.
const NOTIFY_EVERY: Duration = Duration::from_secs(10);

/// Why the proxy does not run.
#[derive(Debug)]
pub enum ProxyError {
    /// There is no log.
    Log(LogError),
    /// Another process runs, or the file can't be written.
    PidFile(PidFileError),
    /// The system gives no thread, or takes no signal handler.
    System(io::Error),
    /// A second signal came before everything had stopped.
    Interrupted,
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyError::Log(error) => error.fmt(f),
            ProxyError::PidFile(error) => error.fmt(f),
            ProxyError::System(error) => error.fmt(f),
            ProxyError::Interrupted => write!(f, "stopped at once by a second signal"),
        }
    }
}

impl std::error::Error for ProxyError {}

impl From<LogError> for ProxyError {
    fn from(error: LogError) -> Self {
        ProxyError::Log(error)
    }
}

impl From<PidFileError> for ProxyError {
    fn from(error: PidFileError) -> Self {
        ProxyError::PidFile(error)
    }
}

impl From<io::Error> for ProxyError {
    fn from(error: io::Error) -> Self {
        ProxyError::System(error)
    }
}

/// The running proxy.
struct Proxy<'c> {
    cli: &'c Cli,
    config: Config,
    settings: Settings,
    log: logging::Handle,
    pidfile: Option<PidFile>,
    metrics: Arc<Metrics>,
    /// In the order of the configuration.
    forwards: Vec<Forward>,
    /// Stopping or stopped, and no longer in the configuration; which jobs it has delivered is known to the one that comes
    /// back for its source.
    leaving: Vec<Forward>,
    status: Option<StatusWorker>,
    notifier: Notifier,
}

/// Runs the forwards of a configuration until a signal ends it.
///
/// # Errors
/// The proxy could not start, or a second signal came before it had stopped.
pub fn run(cli: &Cli, config: Config) -> Result<(), ProxyError> {
    // Before any thread: only then can the local time's offset be read.
    let log = logging::init(log_target(cli, &config), log_level(cli, &config))?;
    let pidfile = pidfile(cli, &config)?;
    let signals = signals()?;
    let settings = Settings { max_job_size: config.max_job_size, ..Settings::default() };
    let mut proxy = Proxy {
        cli,
        config,
        settings,
        log,
        pidfile,
        metrics: Arc::default(),
        forwards: Vec::new(),
        leaving: Vec::new(),
        status: None,
        notifier: Notifier::from_environment(),
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

fn pidfile(cli: &Cli, config: &Config) -> Result<Option<PidFile>, PidFileError> {
    cli.pidfile.as_ref().or(config.pidfile.as_ref()).map(|path| PidFile::create(path)).transpose()
}

/// A channel of the signals that are meant for us.
fn signals() -> io::Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (sender, receiver) = unbounded();
    thread::Builder::new().name("signals".to_string()).spawn(move || {
        for signal in &mut signals {
            // It fails only when the main thread is about to end the process.
            let _ = sender.send(signal);
        }
    })?;
    Ok(receiver)
}

impl Proxy<'_> {
    fn start(&mut self) -> io::Result<()> {
        self.warn();
        info!("gearman-proxy {} starts with {}", env!("CARGO_PKG_VERSION"), self.count());
        // It must not tell of a proxy without forwards.
        self.metrics
            .set_forwards(self.config.forwards.iter().map(|config| Arc::new(ForwardMetrics::new(config))).collect());
        self.start_status()?;
        self.arrange_forwards(&self.settings.clone())?;
        self.notifier.ready(&self.summary());
        Ok(())
    }

    fn count(&self) -> String {
        match self.config.forwards.len() {
            1 => "1 forward".to_string(),
            count => format!("{count} forwards"),
        }
    }

    fn warn(&self) {
        for warning in self.config.warnings.iter().chain(&self.config.open_files_warning()) {
            warn!("{warning}");
        }
    }

    fn start_status(&mut self) -> io::Result<()> {
        let metrics = Arc::clone(&self.metrics);
        self.status =
            Some(StatusWorker::start(self.config.statusqueue.clone(), self.config.metricsfile.clone(), metrics)?);
        Ok(())
    }

    fn summary(&self) -> String {
        status::summary(&self.metrics)
    }

    /// Makes the running forwards those of the configuration: who did not change goes on untouched, with its counters; the
    /// rest stops, each by itself, and starts anew.
    fn arrange_forwards(&mut self, former: &Settings) -> io::Result<()> {
        let mut running: Vec<Option<Forward>> = self.forwards.drain(..).map(Some).collect();
        let prepared = if running.is_empty() { self.metrics.forwards() } else { Vec::new() };
        let same_settings = former.max_job_size == self.settings.max_job_size;
        let mut arranged: Vec<Option<Forward>> = Vec::new();
        for config in &self.config.forwards {
            let unchanged = running.iter_mut().find(|forward| {
                same_settings && forward.as_ref().is_some_and(|forward| forward.metrics().config == *config)
            });
            arranged.push(unchanged.and_then(Option::take));
        }
        running.iter().flatten().for_each(Forward::stop);
        self.leaving.extend(running.into_iter().flatten());
        for (config, forward) in self.config.forwards.iter().zip(arranged) {
            let forward = match forward {
                Some(unchanged) => unchanged,
                None => {
                    let predecessor =
                        self.leaving.iter().position(|forward| forward.metrics().config.source == config.source);
                    let predecessor = predecessor.map(|position| self.leaving.remove(position));
                    let metrics = prepared.iter().find(|metrics| metrics.config.source == config.source).cloned();
                    let metrics = metrics.unwrap_or_else(|| Arc::new(ForwardMetrics::new(config)));
                    Forward::start(self.settings.clone(), metrics, predecessor)?
                }
            };
            self.forwards.push(forward);
        }
        self.metrics.set_forwards(self.forwards.iter().map(|forward| Arc::clone(forward.metrics())).collect());
        Ok(())
    }

    /// Runs until a signal asks for the end.
    fn wait(&mut self, signals: &Receiver<i32>) -> io::Result<()> {
        loop {
            match signals.recv_timeout(NOTIFY_EVERY) {
                Ok(SIGHUP) => self.reload()?,
                Ok(signal) => {
                    info!("{} received, stopping", if signal == SIGINT { "SIGINT" } else { "SIGTERM" });
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => self.notifier.status(&self.summary()),
                Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }

    /// Reads the configuration anew. A wrong one is logged, and the old one goes on.
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
                error!("the configuration is wrong, the old one goes on");
                if let Err(error) = self.log.reopen() {
                    error!("{error}");
                }
            }
        }
        self.notifier.ready(&self.summary());
        Ok(())
    }

    fn take_over(&mut self, config: Config) -> io::Result<()> {
        let former = std::mem::replace(&mut self.config, config);
        let former_settings = self.settings.clone();
        self.settings.max_job_size = self.config.max_job_size;
        if let Err(error) = self.log.set_target(log_target(self.cli, &self.config)) {
            error!("{error}");
        }
        self.log.set_level(log_level(self.cli, &self.config));
        info!("reloading with {}", self.count());
        self.warn();
        if self.cli.pidfile.is_none() && former.pidfile != self.config.pidfile {
            match pidfile(self.cli, &self.config) {
                Ok(pidfile) => self.pidfile = pidfile,
                Err(error) => error!("{error}"),
            }
        }
        self.arrange_forwards(&former_settings)?;
        if (&former.statusqueue, &former.metricsfile) != (&self.config.statusqueue, &self.config.metricsfile) {
            if let Some(status) = self.status.take() {
                status.stop();
            }
            self.start_status()?;
        }
        Ok(())
    }

    /// Stops every forward, as far as its time allows. A second signal ends it at once.
    fn stop(mut self, signals: &Receiver<i32>) -> Result<(), ProxyError> {
        self.notifier.stopping();
        self.forwards.iter().for_each(Forward::stop);
        let began = Instant::now();
        let last = began + self.settings.timing.stop + self.settings.timing.farewell;
        let mut left: Vec<Forward> = self.forwards.drain(..).chain(self.leaving.drain(..)).collect();
        while !left.is_empty() && Instant::now() < last + STOP_GRACE {
            if Instant::now() >= last {
                left.iter().for_each(Forward::abandon);
            }
            match signals.recv_timeout(STOP_LOOK) {
                Ok(SIGTERM | SIGINT) if began.elapsed() > SAME_SIGNAL => return Err(ProxyError::Interrupted),
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            left.retain(|forward| !forward.is_finished());
        }
        for forward in &left {
            let metrics = forward.metrics();
            let (held, config) = (metrics.held(), &metrics.config);
            warn!("{} = {} has not stopped, {held} jobs go back", config.source, config.first_destination());
        }
        if let Some(status) = self.status.take() {
            status.stop();
        }
        drop(self.pidfile.take());
        info!("stopped");
        Ok(())
    }
}
