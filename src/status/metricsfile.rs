//! The metrics file: the counters in the text format of Prometheus, for node_exporter's textfile collector or anything that
//! reads a file. No port, no cron job.
//!
//! A reader never sees half of it: it is written beside its place and renamed. A symbolic link in its place is replaced, not
//! followed.

use std::fmt::{Display, Write as _};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{FIGURES, Verdict, label};
use crate::logging::name_missing_folder;
use crate::metrics::{CONFIRMATION_BUCKETS, ForwardMetrics, Metrics};
use crate::sandbox;

/// How often the file is written, seconds.
pub(super) const INTERVAL: u64 = 15;

#[derive(Debug)]
pub(super) struct MetricsFile {
    path: PathBuf,
    /// The log tells of a failure once, and of its end.
    failed: bool,
}

impl MetricsFile {
    pub(super) fn new(path: PathBuf) -> MetricsFile {
        MetricsFile { path, failed: false }
    }

    pub(super) fn write(&mut self, metrics: &Metrics) {
        let (path, written) = (self.path.display(), replace(&self.path, &text(metrics, SystemTime::now())));
        match &written {
            Ok(()) if self.failed => log::info!("metrics file {path}: written again"),
            Err(error) if !self.failed => {
                log::warn!(
                    "metrics file {path} can't be written: {error}; trying again every {INTERVAL} s; check its folder"
                );
            }
            _ => {}
        }
        self.failed = written.is_err();
    }
}

/// Puts a file with this text at `path`, whole or not at all.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    // Not `*.prom`, which a collector would read.
    let beside = path.with_file_name(format!(".{}.{}.new", name.to_string_lossy(), std::process::id()));
    // One that a killed process with this number has left.
    let _ = fs::remove_file(&beside);
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&beside);
    let mut file: File = opened.map_err(|error| name_missing_folder(path, error))?;
    let written = file
        .set_permissions(Permissions::from_mode(0o644))
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// The whole file.
fn text(metrics: &Metrics, now: SystemTime) -> String {
    let mut out = String::new();
    let verdict = Verdict::of(metrics);
    let unix = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let wrong_since = metrics.configuration_wrong().map_or(0, unix);
    let mut whole = |name: &str, help: &str, value: &dyn Display, labels: &str| {
        head(&mut out, name, "gauge", help);
        let _ = writeln!(out, "gearman_proxy_{name}{labels} {value}");
    };
    let version = env!("CARGO_PKG_VERSION");
    whole("info", "Its version.", &1, &format!("{{version=\"{version}\",seccomp=\"{}\"}}", label(sandbox::status())));
    whole("status", "As on the status queue: 0 OK, 1 warning, 2 critical.", &verdict.code, "");
    whole("written_timestamp_seconds", "When this file was written.", &unix(now), "");
    whole("configuration_wrong_since_timestamp_seconds", "When a reload first failed, 0 for none.", &wrong_since, "");

    let forwards: Vec<(String, Arc<ForwardMetrics>)> =
        metrics.forwards().into_iter().map(|forward| (labels(&forward), forward)).collect();
    let mut family = |name: &str, kind, help, value: &dyn Fn(&ForwardMetrics) -> Option<f64>| {
        let mut values = forwards.iter().filter_map(|(labels, forward)| Some((labels, value(forward)?))).peekable();
        if values.peek().is_some() {
            head(&mut out, &format!("forward_{name}"), kind, help);
        }
        for (labels, value) in values {
            let _ = writeln!(out, "gearman_proxy_forward_{name}{{{labels}}} {value}");
        }
    };
    let state = "0 working, 1 connecting for the first time, 2 failed.";
    family("state", "gauge", state, &|forward| Some(f64::from(forward.state() as u8)));
    for (name, kind, help, _, value) in FIGURES {
        family(name, kind, help, &|forward| value(&forward.counts.lock()));
    }
    if !forwards.is_empty() {
        head(&mut out, "forward_confirmation_seconds", "histogram", "Time from a job's grab to its confirmation.");
    }
    for (labels, forward) in &forwards {
        let mut line = |suffix: &str, end: &str, value: f64| {
            let _ = writeln!(out, "gearman_proxy_forward_confirmation_seconds_{suffix}{{{labels}{end}}} {value}");
        };
        let counts = forward.counts.lock();
        let mut count = 0.0;
        let ends = CONFIRMATION_BUCKETS.iter().map(|&end| (end as f64 / 1000.0).to_string()).chain(["+Inf".to_owned()]);
        for (&jobs, end) in counts.confirmations.iter().zip(ends) {
            count += jobs as f64;
            line("bucket", &format!(",le=\"{end}\""), count);
        }
        line("sum", "", counts.confirmation_milliseconds as f64 / 1000.0);
        line("count", "", count);
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP gearman_proxy_{name} {help}\n# TYPE gearman_proxy_{name} {kind}");
}

/// The forward's labels. The destination is the first one that is configured, so that a series outlives a change to another.
fn labels(forward: &ForwardMetrics) -> String {
    let source = &forward.config.source;
    let (server, queue) = (label(&source.server.to_string()), label(&source.queue));
    let destination = label(&forward.config.first_destination().server.to_string());
    format!("source=\"{server}\",destination=\"{destination}\",queue=\"{queue}\"")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;
    use crate::status::tests::forward;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("gearman-proxy-metrics-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn every_counter_of_a_forward_is_there_with_its_labels() {
        let metrics = Metrics::default();
        let forward = forward("a:1/it\"s\\", "b:1/q");
        metrics.set_forwards(vec![Arc::clone(&forward)]);
        forward.counts.lock().sessions += 1;
        forward.delivered(3, 30, 40);
        forward.confirmed(Duration::from_millis(20), 2);
        forward.confirmed(Duration::from_secs(200), 1);
        forward.rejected("bad base64");
        forward.counts.lock().waiting = Some(7);
        let text = text(&metrics, UNIX_EPOCH + Duration::from_secs(99));
        let labels = r#"source="a:1",destination="b:1",queue="it%22s%5C""#;
        for line in [
            format!("gearman_proxy_forward_jobs_total{{{labels}}} 3"),
            format!("gearman_proxy_forward_received_bytes_total{{{labels}}} 30"),
            format!("gearman_proxy_forward_sent_bytes_total{{{labels}}} 40"),
            format!("gearman_proxy_forward_rejected_jobs_total{{{labels}}} 1"),
            format!("gearman_proxy_forward_waiting_jobs{{{labels}}} 7"),
            format!("gearman_proxy_forward_state{{{labels}}} 0"),
            format!("gearman_proxy_forward_confirmation_seconds_bucket{{{labels},le=\"0.005\"}} 0"),
            format!("gearman_proxy_forward_confirmation_seconds_bucket{{{labels},le=\"0.025\"}} 2"),
            format!("gearman_proxy_forward_confirmation_seconds_bucket{{{labels},le=\"+Inf\"}} 3"),
            format!("gearman_proxy_forward_confirmation_seconds_sum{{{labels}}} 200.04"),
            format!("gearman_proxy_forward_confirmation_seconds_count{{{labels}}} 3"),
            String::from("gearman_proxy_written_timestamp_seconds 99"),
            String::from("gearman_proxy_status 1"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("destination_waiting_jobs"), "what is not known is not told: {text}");
    }

    #[test]
    fn a_symbolic_link_is_replaced_and_not_followed() {
        let folder = folder("link");
        let (target, path) = (folder.join("target"), folder.join("metrics.prom"));
        fs::write(&target, "precious").unwrap();
        symlink(&target, &path).unwrap();
        let beside = folder.join(format!(".metrics.prom.{}.new", std::process::id()));
        symlink(&target, &beside).unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let kind = fs::symlink_metadata(&path).unwrap();
        assert!(kind.is_file() && kind.permissions().mode() & 0o777 == 0o644);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "nothing is left beside it");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_failure_leaves_nothing_and_is_forgotten_when_it_works_again() {
        let folder = folder("gone");
        let mut file = MetricsFile::new(folder.join("there/metrics.prom"));
        file.write(&Metrics::default());
        assert!(file.failed);
        fs::create_dir(folder.join("there")).unwrap();
        file.write(&Metrics::default());
        assert!(!file.failed && file.path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
