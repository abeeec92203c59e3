//! The program that is tested.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::{Folder, Gearmand, PATIENCE, pause, signal, wait_for};

/// Another build of the program can be put through these tests, the static one say.
pub fn program() -> PathBuf {
    std::env::var_os("GEARMAN_PROXY_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_gearman-proxy").into()).into()
}

/// A running proxy with a configuration file of its own, killed with it.
pub struct Proxy {
    folder: Folder,
    options: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    process: Child,
}

impl Proxy {
    /// Starts with this configuration; what it prints is [`Proxy::log`].
    pub fn start(config: &str) -> Proxy {
        Proxy::start_in(Folder::new(), config, &[])
    }

    /// With these forwards, and its status in the queue `proxy_status` of this server.
    pub fn with_status(server: &Gearmand, forwards: &str) -> Proxy {
        Proxy::start(&format!("statusqueue = {}\n{forwards}", server.queue("proxy_status")))
    }

    /// With more command line options.
    pub fn start_with(config: &str, options: &[&str]) -> Proxy {
        Proxy::start_in(Folder::new(), config, options)
    }

    /// With variables in its environment beside those of the test.
    pub fn start_with_environment(config: &str, environment: &[(&'static str, &'static str)]) -> Proxy {
        Proxy::launch(Folder::new(), config, &[], environment)
    }

    /// In a folder that may hold files already; it is the working directory too.
    pub fn start_in(folder: Folder, config: &str, options: &[&str]) -> Proxy {
        Proxy::launch(folder, config, options, &[])
    }

    fn launch(folder: Folder, config: &str, options: &[&str], environment: &[(&'static str, &'static str)]) -> Proxy {
        std::fs::write(folder.file("proxy.conf"), config).unwrap();
        let options: Vec<_> = options.iter().map(|option| (*option).to_owned()).collect();
        let process = spawn(&folder, &options, environment);
        Proxy { folder, options, environment: environment.to_vec(), process }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Everything that it and its predecessors in this test wrote to standard output and standard error.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.file("output")).unwrap()).into_owned()
    }

    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        wait_for(&format!("the log says {text:?}"), || self.log().contains(text));
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// SIGHUP with this configuration in the file.
    pub fn reload(&self, config: &str) {
        std::fs::write(self.folder.file("proxy.conf"), config).unwrap();
        self.signal("HUP");
    }

    /// SIGTERM, and what became of it.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.exit_status()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn exit_status(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the proxy does not end");
            pause();
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// SIGKILL: no chance to say goodbye.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }

    /// Starts it again after its end, the same way.
    pub fn start_again(&mut self) {
        assert!(!self.is_running());
        self.process = spawn(&self.folder, &self.options, &self.environment);
    }
}

fn spawn(folder: &Folder, options: &[String], environment: &[(&'static str, &'static str)]) -> Child {
    let output = File::options().create(true).append(true).open(folder.file("output")).unwrap();
    Command::new(program())
        .arg("--config")
        .arg(folder.file("proxy.conf"))
        .args(options)
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program().display()))
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- proxy in {}\n{}", self.folder.path().display(), self.log());
        }
    }
}

/// Runs the program to its end, for options that don't need a server.
pub fn run(options: &[&str]) -> Ended {
    let output = Command::new(program()).args(options).stdin(Stdio::null()).output().unwrap();
    Ended {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What a program left.
#[derive(Debug)]
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// What the status queue says, taken apart.
#[derive(Debug)]
pub struct Status {
    /// As it came.
    pub text: String,
    /// Before the `|`.
    pub message: String,
    /// Name and value, with its unit, in the order of the answer.
    pub perfdata: Vec<(String, String)>,
}

impl Status {
    /// Asks as `check_gearman -q QUEUE -s PAYLOAD` does.
    #[track_caller]
    pub fn ask(server: &Gearmand, queue: &str, payload: &str) -> Status {
        let mut client = server.client();
        client.submit_as(super::peer::SUBMIT_JOB_HIGH, queue, b"check", payload.as_bytes());
        let packet = client.receive();
        assert_eq!(packet.kind, super::peer::WORK_COMPLETE, "{packet:?}");
        let text = String::from_utf8(packet.after_handle().to_vec()).unwrap();
        let (message, perfdata) = text.split_once('|').unwrap_or((&text, ""));
        let perfdata = perfdata
            .split(";;;")
            .filter(|metric| !metric.trim().is_empty())
            .map(|metric| {
                let (name, value) = metric.trim().split_once("'=").unwrap_or_else(|| panic!("{metric:?} in {text}"));
                (name.strip_prefix('\'').unwrap().to_owned(), value.to_owned())
            })
            .collect();
        Status { message: message.to_owned(), perfdata, text }
    }

    /// A value without its unit.
    #[track_caller]
    pub fn value(&self, name: &str) -> u64 {
        let found = self.perfdata.iter().find(|(found, _)| found == name);
        let (_, value) = found.unwrap_or_else(|| panic!("no {name} in {}", self.text));
        value.trim_end_matches('c').parse().unwrap()
    }
}
