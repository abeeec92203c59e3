//! Random hostile servers on both sides of a dozen forwards, for a while, with a healthy forward beside them: `tests/hostile`
//! runs it for an hour. Nothing crashes, memory is bounded, threads and descriptors stay as many, and the healthy forward's
//! jobs are never late.
//!
//! `HOSTILE_SECONDS` is how long (40 by default), `HOSTILE_SEED` what decides everything that a server does.
#![allow(clippy::unwrap_used)]

mod support;

use std::env;
use std::time::{Duration, Instant};

use support::peer::*;
use support::scripted::{Peer, Server, assigned, cpu, descriptors, figure, head, response};
use support::{Gearmand, Proxy};

/// Forwards with a hostile server on one side or on both.
const FORWARDS: usize = 12;

/// A job of the healthy forward is under way no longer.
const LATE: Duration = Duration::from_secs(2);

const LARGE: usize = 60 << 20;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// Something that no sound server says.
fn nonsense(random: &mut Random) -> Vec<u8> {
    const KINDS: [u32; 16] = [
        0,
        99,
        NOOP,
        JOB_CREATED,
        NO_JOB,
        WORK_STATUS,
        WORK_COMPLETE,
        WORK_FAIL,
        ECHO_RES,
        ERROR,
        WORK_EXCEPTION,
        OPTION_RES,
        WORK_DATA,
        WORK_WARNING,
        JOB_ASSIGN_UNIQ,
        11,
    ];
    let kind = KINDS[random.below(KINDS.len())];
    let job = assigned(random.below(1000), b"data");
    match random.below(16) {
        0 => b"\0BAD\0\0\0\x08\0\0\0\0".to_vec(),
        1 => b"\0RE".to_vec(),
        2 => head(kind, u32::MAX),
        3 => head(kind, LARGE as u32),
        4 => [head(kind, u32::MAX), vec![b'x'; random.below(1 << 20)]].concat(),
        5 => [head(kind, LARGE as u32), vec![0; random.below(1 << 20)]].concat(),
        6 => random.bytes(4096),
        7 => b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec(),
        8 => b"\x15\x03\x01\0\x02\x02\x46".to_vec(),
        9 => job[..random.below(job.len())].to_vec(),
        10 => request(kind, &[b"x"]),
        11 => response(kind, &[]),
        12 => response(kind, &[&random.bytes(1 << 10)]),
        13 => response(kind, &[b"H:x:1", b"text\n\x1b[31m"]).repeat(1 + random.below(1000)),
        14 => response(JOB_ASSIGN_UNIQ, &[&vec![b'h'; 1 << 20], b"work", b"", b"x"]),
        _ => job.repeat(1 + random.below(1000)),
    }
}

/// What it says is torn apart, or not.
fn say(peer: &mut Peer, random: &mut Random, bytes: &[u8]) -> bool {
    let size = [1, 7, 1 << 10, 1 << 20][random.below(4)];
    let (torn, rest) = bytes.split_at(bytes.len().min(200 * size));
    torn.chunks(size).all(|piece| peer.say(piece)) && peer.say(rest)
}

/// One connection: sound for a while, then not.
fn misbehave(peer: &mut Peer, seed: u64) {
    let mut random = Random(seed ^ (peer.number as u64) << 32);
    let mut sound = [0, 1, 4, 10, 30][random.below(5)];
    loop {
        let Some(request) = peer.next() else { return };
        let heard = match (request.kind, random.below(40)) {
            _ if sound == 0 => break,
            (GRAB_JOB_UNIQ, 0) => say(peer, &mut random, &assigned(peer.number, &vec![b'x'; LARGE])),
            (GRAB_JOB_UNIQ, 1..20) => {
                let data = vec![b'x'; 1 << random.below(21)];
                let job = assigned(1 + random.below(1 << 30), &data);
                say(peer, &mut random, &job)
            }
            (SUBMIT_JOB, 0) => {
                peer.answer(&request)
                    && say(peer, &mut random, &response(WORK_COMPLETE, &[b"H:there:1", &vec![b'x'; LARGE]]))
            }
            (SUBMIT_JOB, 1..30) => {
                peer.answer(&request) && say(peer, &mut random, &response(WORK_COMPLETE, &[b"H:there:1", b"result"]))
            }
            _ => peer.answer(&request),
        };
        sound -= 1;
        if !heard {
            return;
        }
    }
    let bytes = nonsense(&mut random);
    match random.below(8) {
        0 => peer.flood(&bytes),
        1 => {
            let end = Instant::now() + Duration::from_secs(20);
            for byte in &bytes {
                if !peer.say(&[*byte]) || Instant::now() > end {
                    return;
                }
                peer.pause(Duration::from_millis(20));
            }
        }
        2 => peer.pause(Duration::from_secs(random.below(20) as u64)),
        3 => {}
        4 => peer.endure(),
        _ => {
            say(peer, &mut random, &bytes);
            peer.pause(Duration::from_millis(random.below(3000) as u64));
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).ok().map_or(default, |text| text.parse().unwrap())
}

#[test]
fn random_hostile_servers_disturb_nobody() {
    let time = Duration::from_secs(number("HOSTILE_SECONDS", 40));
    let seed = number("HOSTILE_SEED", u64::from(std::process::id()));
    println!("HOSTILE_SEED={seed} HOSTILE_SECONDS={}", time.as_secs());
    let (source, destination) = (Gearmand::start(), Gearmand::start());
    let hostile: Vec<_> = (0..2 * FORWARDS as u64)
        .map(|number| Server::start(move |peer| misbehave(peer, seed.wrapping_mul(31).wrapping_add(number << 48))))
        .collect();
    let mut config = format!("{} = {}\n", source.queue("work"), destination.queue("work"));
    for (forward, pair) in hostile.chunks(2).enumerate() {
        let (from, to) = (pair[0].queue("work"), pair[1].queue("work"));
        config += &match forward % 4 {
            0 => format!("{from} = {to}\n"),
            1 => format!("{from} = {to}\n async = 0\n worker = 4\n"),
            2 => format!("{from} = {to}\n encrypt = secret\n"),
            _ => format!("{from} = {to}\n reject_queue = {}\n data_callback = s/x/yy/g\n", source.queue("rejected")),
        };
    }
    let mut proxy = Proxy::start(&config);
    source.wait_for_workers("work", 1);
    let began = Instant::now();
    let (mut worst, mut jobs, mut threads, mut files) = (Duration::ZERO, 0, (usize::MAX, 0), 0);
    let mut worker = destination.worker("work");
    let mut client = source.client();
    while began.elapsed() < time {
        let sent = Instant::now();
        client.submit_background("work", b"", b"a healthy job");
        let job = worker.grab();
        worker.complete(&job, b"");
        worst = worst.max(sent.elapsed());
        jobs += 1;
        let now = figure(proxy.pid(), "Threads");
        // At first they are still being started.
        if began.elapsed() > Duration::from_secs(10) {
            threads = (threads.0.min(now), threads.1.max(now));
        }
        files = files.max(descriptors(proxy.pid()));
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let connections: usize = hostile.iter().map(Server::accepted).sum();
    let (peak, rest, cpu) = (figure(proxy.pid(), "VmHWM"), figure(proxy.pid(), "VmRSS"), cpu(proxy.pid()));
    println!(
        "{connections} hostile connections; {jobs} healthy jobs, the slowest {} ms; peak {peak} MiB, now {rest} MiB; threads \
         {} to {}, up to {files} descriptors; {cpu:?} of CPU, {} bytes of log",
        worst.as_millis(),
        threads.0,
        threads.1,
        proxy.log().len()
    );
    assert!(proxy.is_running(), "it has crashed: {}", proxy.log());
    assert!(connections > 4 * FORWARDS, "they were hardly tried");
    assert!(worst < LATE, "a healthy job took {worst:?}");
    assert!(peak < 256 + 5 * (LARGE >> 20), "{peak} MiB");
    // Reader, submitter and confirmer each, and connections that ask something.
    assert!(threads.1 - threads.0 <= 2 * FORWARDS, "{threads:?} threads");
    assert!(files < 8 * FORWARDS + 64, "{files} descriptors");
    assert!(cpu < time.max(Duration::from_secs(10)), "{cpu:?} of CPU in {time:?}");
    assert!(proxy.stop().success());
    drop(hostile);
}
