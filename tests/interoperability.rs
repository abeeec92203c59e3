//! The tools that users have at either end: libgearman's `gearman` and `gearadmin`, and Perl's Gearman::Client and
//! Gearman::Worker.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Write;
use std::process::{Child, Command, Stdio};

use support::{Gearmand, Proxy, Site, signal, wait_for};

/// A child process that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Running {
        Running(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not SIGKILL, which `timeout` could not pass on.
        signal(self.0.id(), "TERM");
        let _ = self.0.wait();
    }
}

/// A command that gives up where it would wait for ever.
fn patient(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", program]);
    command
}

/// `gearman` with this server and these options.
fn gearman(server: &Gearmand, options: &[&str]) -> Command {
    let mut command = patient("gearman");
    let address = server.address();
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string()]).args(options);
    command
}

/// Perl with a program whose first argument is the server.
fn perl(program: &str, server: &Gearmand, arguments: &[&str]) -> Command {
    let mut command = patient("perl");
    command.args(["-we", program, &server.server()]).args(arguments);
    command
}

/// Runs a command with this standard input and returns what it printed.
#[track_caller]
fn output(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

const PERL_WORKER: &str = r#"
    use Gearman::Worker;
    my ($server, $queue) = @ARGV;
    my $worker = Gearman::Worker->new(job_servers => [$server]);
    $worker->register_function($queue => sub {
        my ($job) = @_;
        return undef if $job->arg eq "fail";
        $job->set_status(1, 2);
        return scalar reverse $job->arg;
    });
    $worker->work while 1;
"#;

const PERL_CLIENT: &str = r#"
    use Gearman::Client;
    use Gearman::Task;
    my ($server, $queue, $data) = @ARGV;
    my $client = Gearman::Client->new(job_servers => [$server]);
    my ($failed, $status) = (0, "none");
    my $result = $client->do_task(Gearman::Task->new($queue, \$data, {
        on_status => sub { $status = "$_[0]/$_[1]" },
        on_fail   => sub { $failed = 1 },
    }));
    print $failed ? "failed" : "status $status, result $$result";
"#;

const PERL_BACKGROUND_CLIENT: &str = r#"
    use Gearman::Client;
    use Gearman::Task;
    my ($server, $queue, @jobs) = @ARGV;
    my $client = Gearman::Client->new(job_servers => [$server]);
    for my $data (@jobs) {
        $client->dispatch_background(Gearman::Task->new($queue, \$data, { uniq => "id of $data" })) or die;
    }
"#;

#[test]
fn gearman_submits_in_the_background_and_gearman_works() {
    let site = Site::start("");
    for n in 0..10 {
        output(&mut gearman(&site.source, &["-b", "-f", "work"]), format!("job {n}\n").as_bytes());
    }
    site.destination.wait_for_jobs("work", 10);
    // Ends after ten jobs; what `cat` prints is its result, and goes to nobody.
    let seen = std::env::temp_dir().join(format!("gearman-proxy-test-{}-worker", std::process::id()));
    let command = format!("cat >> {}", seen.display());
    output(&mut gearman(&site.destination, &["-w", "-c", "10", "-f", "work", "--", "sh", "-c", &command]), b"");
    let expected: String = (0..10).map(|n| format!("job {n}\n")).collect();
    assert_eq!(std::fs::read_to_string(&seen).unwrap(), expected);
    std::fs::remove_file(&seen).unwrap();
}

#[test]
fn gearman_asks_and_gearman_answers_through_a_synchronous_forward() {
    let site = Site::start("async = 0");
    let _worker = Running::start(&mut gearman(&site.destination, &["-w", "-f", "work", "--", "tr", "a-z", "A-Z"]));
    for question in ["hello", "a longer question\nof two lines\n"] {
        let answer = output(&mut gearman(&site.source, &["-f", "work"]), question.as_bytes());
        assert_eq!(String::from_utf8(answer).unwrap(), question.to_uppercase());
    }
}

#[test]
fn gearman_is_told_that_its_job_went_into_the_background() {
    let site = Site::start("");
    let answer = output(&mut gearman(&site.source, &["-f", "work"]), b"data");
    assert_eq!(answer, b"job submitted as background task");
}

#[test]
fn gearman_asks_for_the_status() {
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let _proxy = Proxy::with_status(&source, &format!("{} = {}\n", source.queue("work"), destination.queue("work")));
    source.wait_for_workers("work", 1);
    wait_for("all is well", || {
        let answer = output(&mut gearman(&source, &["-f", "proxy_status", "-u", "check", "-I"]), b"check");
        answer.starts_with(b"0:OK - proxy version v")
    });
}

#[test]
fn gearadmin_shows_the_forward_as_a_worker_of_its_queue() {
    let site = Site::start("");
    let address = site.source.address();
    let (host, port) = (format!("--host={}", address.ip()), format!("--port={}", address.port()));
    let gearadmin =
        |option: &str| String::from_utf8(output(patient("gearadmin").args([&host, &port, option]), b"")).unwrap();
    assert!(gearadmin("--status").lines().any(|line| line == "work\t0\t0\t1"), "{}", gearadmin("--status"));
    let workers = gearadmin("--workers");
    assert!(workers.lines().any(|line| line.contains("gearman-proxy") && line.ends_with("work")), "{workers}");
}

#[test]
fn perl_asks_and_perl_answers_through_a_synchronous_forward() {
    let site = Site::start("async = 0\nworker = 2");
    let _worker = Running::start(&mut perl(PERL_WORKER, &site.destination, &["work"]));
    let answer = output(&mut perl(PERL_CLIENT, &site.source, &["work", "hello"]), b"");
    assert_eq!(String::from_utf8(answer).unwrap(), "status 1/2, result olleh");
    let answer = output(&mut perl(PERL_CLIENT, &site.source, &["work", "fail"]), b"");
    assert_eq!(String::from_utf8(answer).unwrap(), "failed");
}

#[test]
fn perl_submits_in_the_background_with_ids_of_its_own() {
    let site = Site::start("");
    output(&mut perl(PERL_BACKGROUND_CLIENT, &site.source, &["work", "one", "two", "three"]), b"");
    site.destination.wait_for_jobs("work", 3);
    let jobs: Vec<_> = site.destination.drain("work").into_iter().map(|job| (job.unique, job.data)).collect();
    let expected = ["one", "two", "three"].map(|data| (format!("id of {data}").into_bytes(), data.as_bytes().to_vec()));
    assert_eq!(jobs, expected);
}

#[test]
fn perl_works_off_what_came_in_the_background() {
    let site = Site::start("");
    let _worker = Running::start(&mut perl(PERL_WORKER, &site.destination, &["work"]));
    output(&mut perl(PERL_BACKGROUND_CLIENT, &site.source, &["work", "one", "two", "three"]), b"");
    site.source.wait_for_jobs("work", 0);
    site.destination.wait_for_jobs("work", 0);
}

#[test]
fn perl_is_told_that_its_job_went_into_the_background() {
    let site = Site::start("");
    let answer = output(&mut perl(PERL_CLIENT, &site.source, &["work", "hello"]), b"");
    assert_eq!(String::from_utf8(answer).unwrap(), "status none, result job submitted as background task");
}
