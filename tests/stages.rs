//! The stages of a forward, from a job's data to what is sent.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use gearman_proxy::stages::cipher::Cipher;
use gearman_proxy::stages::substitution::Substitution;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use gearman_proxy::stages::{Failure, Limits, Scratch, Stages, Step, Undeliverable, base64, job_time};

const PASSWORD: &[u8] = b"should_be_changed";

/// Texts in hex and what Mod-Gearman's C code made of them; the last is the Perl proxy's.
const VECTORS: &[(&str, &str)] = &[
    ("747970653d706173736976650a6162", "RSBMQXtrevklYKzy2SX+yA=="),
    ("747970653d706173736976650a616263", "u7u8OWAZB7HNRfh5t7k0ajpMjls6yt3Vmm25Jd63OHA="),
    (
        "747970653d706173736976650a686f73745f6e616d653d776562310a61626364",
        "wX4xVmoWBHurM1LJqPDtI/RW+8ZTtBPGt5LA0IX16o06TI5bOsrd1ZptuSXetzhw",
    ),
    (
        "747970653d706173736976650a686f73745f6e616d653d66fc72df650a6f75747075743d6772fcdf6520a70a0a",
        "wX4xVmoWBHurM1LJqPDtIwlllvMwD00exTC6kV9cfgxC0IxZS28rCdTIU2WdzY6V",
    ),
];
const EMPTY_BY_PERL: &str = "OkyOWzrK3dWabbkl3rc4cDpMjls6yt3Vmm25Jd63OHA=";

const JOB: &str = "type=host\nresult_queue=check_results\nhost_name=web1\n\n\n";

fn unhex(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).unwrap()).collect()
}

fn encoded(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoded = Vec::new();
    base64::encode(text.as_ref(), &mut encoded).unwrap();
    encoded
}

fn encrypted(password: &[u8], text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut text = text.as_ref().to_vec();
    Cipher::new(password).encrypt(&mut text).unwrap();
    encoded(text)
}

fn stages(decrypt: Option<&[u8]>, data_callbacks: &[&str], encrypt: Option<&[u8]>) -> Stages {
    Stages {
        decrypt: decrypt.map(Cipher::new),
        data_callbacks: data_callbacks.iter().map(|text| Substitution::parse(text).unwrap()).collect(),
        uniq_callbacks: Vec::new(),
        encrypt: encrypt.map(Cipher::new),
        reads_time: false,
    }
}

fn with_unique(mut stages: Stages, uniq_callbacks: &[&str]) -> Stages {
    stages.uniq_callbacks = uniq_callbacks.iter().map(|text| Substitution::parse(text).unwrap()).collect();
    stages
}

fn sent(stages: &Stages, data: impl AsRef<[u8]>) -> Result<Vec<u8>, Undeliverable> {
    sent_within(1 << 20, stages, data)
}

fn sent_within(max_size: usize, stages: &Stages, data: impl AsRef<[u8]>) -> Result<Vec<u8>, Undeliverable> {
    let limits = Limits::of_size(max_size);
    let mut scratch = Scratch::default();
    let first = stages.apply(data.as_ref(), &mut scratch, &limits).map(|staged| staged.data.to_vec());
    let again = stages.apply(data.as_ref(), &mut scratch, &limits).map(|staged| staged.data.to_vec());
    assert_eq!(first, again, "buffers used before change nothing");
    assert_eq!(explained(stages, data, &limits).1, first, "explained as applied");
    first.map_err(|failure| match failure {
        Failure::Undeliverable(undeliverable) => undeliverable,
        Failure::Stopped => panic!("nobody stops it"),
    })
}

/// The steps, and what would be sent.
fn explained(stages: &Stages, data: impl AsRef<[u8]>, limits: &Limits<'_>) -> (Vec<Step>, Result<Vec<u8>, Failure>) {
    let (mut scratch, mut steps) = (Scratch::default(), Vec::new());
    let staged = stages.explain(data.as_ref(), &mut scratch, limits, Some(&mut steps));
    let sent = staged.map(|staged| staged.data.to_vec());
    (steps, sent)
}

fn unique(stages: &Stages, data: impl AsRef<[u8]>) -> (Option<Vec<u8>>, Option<&'static str>) {
    let mut scratch = Scratch::default();
    let staged = stages.apply(data.as_ref(), &mut scratch, &Limits::of_size(1 << 20)).unwrap();
    (staged.unique.map(<[u8]>::to_vec), staged.warning)
}

#[test]
fn without_options_data_passes_byte_for_byte() {
    let none = stages(None, &[], None);
    assert!(none.is_identity());
    for data in [&b""[..], b"\0\xff not base64", b"check"] {
        assert_eq!(sent(&none, data).unwrap(), data);
    }
    assert!(!stages(None, &["s/a/b/"], None).is_identity());
    assert!(!with_unique(stages(None, &[], None), &["s/a/b/"]).is_identity());
}

#[test]
fn decrypted_and_encrypted_again() {
    let again = stages(Some(PASSWORD), &[], Some(b"other"));
    assert_eq!(sent(&again, encrypted(PASSWORD, JOB)).unwrap(), encrypted(b"other", JOB));
}

#[test]
fn decrypted_only_sends_the_plain_text() {
    assert_eq!(sent(&stages(Some(PASSWORD), &[], None), encrypted(PASSWORD, JOB)).unwrap(), JOB.as_bytes());
}

#[test]
fn decrypted_and_changed_sends_base64() {
    let changed = stages(Some(PASSWORD), &["s/web1/web2/", "s/2/22/"], None);
    assert_eq!(sent(&changed, encrypted(PASSWORD, JOB)).unwrap(), encoded(JOB.replace("web1", "web22")));
    let unmatched = stages(Some(PASSWORD), &["s/web9/web2/"], None);
    assert_eq!(sent(&unmatched, encrypted(PASSWORD, JOB)).unwrap(), encoded(JOB));
}

#[test]
fn decrypted_changed_and_encrypted() {
    let changed = stages(Some(PASSWORD), &["s/^result_queue=.*$/result_queue=special/gm"], Some(b"other"));
    let expected = encrypted(b"other", JOB.replace("check_results", "special"));
    assert_eq!(sent(&changed, encrypted(PASSWORD, JOB)).unwrap(), expected);
}

#[test]
fn changed_only_reads_and_writes_base64() {
    assert_eq!(
        sent(&stages(None, &["s/web1/web2/"], None), encoded(JOB)).unwrap(),
        encoded(JOB.replace("web1", "web2"))
    );
    // Not decrypted: whatever the text is, it is changed.
    assert_eq!(sent(&stages(None, &["s/\\x00/0/g"], None), encoded(b"\0\x01\0")).unwrap(), encoded(b"0\x010"));
}

#[test]
fn changed_and_encrypted() {
    let changed = stages(None, &["s/web1/web2/"], Some(b"other"));
    assert_eq!(sent(&changed, encoded(JOB)).unwrap(), encrypted(b"other", JOB.replace("web1", "web2")));
}

#[test]
fn encrypted_only_takes_the_data_as_it_came() {
    let only = stages(None, &[], Some(b"other"));
    for data in [JOB.as_bytes(), b"", b"bm8gYmFzZTY0", b"\xff\0\xfe"] {
        assert_eq!(sent(&only, data).unwrap(), encrypted(b"other", data));
    }
}

#[test]
fn mod_gearmans_vectors() {
    for (text, data) in VECTORS {
        let text = unhex(text);
        assert_eq!(sent(&stages(None, &[], Some(PASSWORD)), &text).unwrap(), data.as_bytes());
        assert_eq!(sent(&stages(Some(PASSWORD), &[], None), data).unwrap(), text);
    }
    assert_eq!(sent(&stages(Some(PASSWORD), &[], None), EMPTY_BY_PERL).unwrap(), b"");
    assert_eq!(sent(&stages(Some(PASSWORD), &[], None), encrypted(PASSWORD, b"")).unwrap(), b"");
    assert_eq!(encrypted(PASSWORD, b"").len(), 24, "one block of NULs");
}

#[test]
fn passwords_count_up_to_32_bytes() {
    assert_eq!(Cipher::new(&[b'a'; 40]), Cipher::new(&[b'a'; 32]));
    assert_eq!(Cipher::new(b"a\0"), Cipher::new(b"a"));
    assert_ne!(Cipher::new(b"a"), Cipher::new(b"b"));
    assert_eq!(format!("{:?}", stages(Some(PASSWORD), &[], None)).matches("should").count(), 0);
}

#[test]
fn base64_may_be_broken_by_any_white_space() {
    let broken: Vec<u8> = encrypted(PASSWORD, JOB)
        .chunks(7)
        .zip(["\n", "\r\n", " ", "\t", "\x0b", "\x0c", "\n\n"].iter().cycle())
        .flat_map(|(chunk, blank)| [chunk, blank.as_bytes()].concat())
        .collect();
    assert_eq!(sent(&stages(Some(PASSWORD), &[], None), &broken).unwrap(), JOB.as_bytes());
    assert_eq!(
        sent(&stages(Some(PASSWORD), &[], None), [b"\n ".as_slice(), &broken].concat()).unwrap(),
        JOB.as_bytes()
    );
    // Padding, too.
    assert_eq!(sent(&stages(None, &["s/x/y/"], None), "YQ=\n=\n").unwrap(), b"YQ==");
    assert_eq!(sent(&stages(None, &["s/x/y/"], None), " \n").unwrap(), b"");
}

#[test]
fn undecodable_base64_is_undeliverable() {
    for data in
        ["YQ", "YQ=", "YWI", "Y", "YQ===", "YQ==YQ==", "Y Q", "=", "====", "Y\0Q=", "check", "YQ_=", "Y-Q=", "YQ==!"]
    {
        for stages in [
            stages(Some(PASSWORD), &[], None),
            stages(None, &["s/x/y/"], None),
            with_unique(stages(None, &[], None), &["s/x/y/"]),
        ] {
            assert_eq!(sent(&stages, data), Err(Undeliverable::NotBase64), "{data}");
        }
    }
    // The unused bits of the last character are ignored, as by Mod-Gearman and Perl.
    assert_eq!(sent(&stages(None, &["s/x/y/"], None), "YR==").unwrap(), b"YQ==");
}

#[test]
fn broken_blocks_are_undeliverable() {
    let decrypt = stages(Some(PASSWORD), &[], None);
    assert_eq!(sent(&decrypt, encoded(b"15 bytes of it.")), Err(Undeliverable::BrokenBlock));
    assert_eq!(sent(&decrypt, encoded(b"17 bytes of this.")), Err(Undeliverable::BrokenBlock));
    assert_eq!(sent(&decrypt, ""), Ok(Vec::new()));
}

#[test]
fn wrong_passwords_are_noticed() {
    assert_eq!(sent(&stages(Some(b"wrong"), &[], None), encrypted(PASSWORD, JOB)), Err(Undeliverable::WrongPassword));
    let decrypt = stages(Some(PASSWORD), &[], None);
    for text in ["DATATYPE::x\x01", "host_name=a\0b", "a=\x07", "check", "\tgr\u{fc}n\r\n", "", "a_Z::", "\u{80}"] {
        assert_eq!(sent(&decrypt, encrypted(PASSWORD, text)).unwrap(), text.as_bytes(), "{text:?}");
    }
    for text in ["a\0b", "a:\x01", "1a=\x01", "=\x01", "::\x01", " a=\x1b", "a\x7f", "a b=\x02", "\x0b"] {
        assert_eq!(sent(&decrypt, encrypted(PASSWORD, text)), Err(Undeliverable::WrongPassword), "{text:?}");
    }
}

#[test]
fn reasons_fit_the_status() {
    for reason in [
        Undeliverable::NotBase64,
        Undeliverable::BrokenBlock,
        Undeliverable::WrongPassword,
        Undeliverable::OutcomeTooLarge,
        Undeliverable::TooMuchWork,
        Undeliverable::NoMemory,
    ] {
        let text = reason.to_string();
        assert!(text.len() <= 80 && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{text}");
        assert!(!text.contains(['|', '\'', '(', ')', '[', ']', '{', '}', '<', '>']), "{text}");
    }
}

#[test]
fn uniq_callback_reads_the_text_and_leaves_the_data() {
    const ID: &[&str] = &[r"s/\A.*?^host_name=(\w+).*\z/$1/ms", "s/web/W-/"];
    let id = Some(b"W-1".to_vec());
    let plain = with_unique(stages(None, &[], None), ID);
    // As it came: also its line breaks.
    let broken = [b"\n".as_slice(), &encoded(JOB)].concat();
    assert_eq!(sent(&plain, &broken).unwrap(), broken);
    assert_eq!(unique(&plain, &broken), (id.clone(), None));

    let decrypting = with_unique(stages(Some(PASSWORD), &[], None), ID);
    assert_eq!(sent(&decrypting, encrypted(PASSWORD, JOB)).unwrap(), JOB.as_bytes());
    assert_eq!(unique(&decrypting, encrypted(PASSWORD, JOB)), (id.clone(), None));

    let encrypting = with_unique(stages(None, &[], Some(PASSWORD)), ID);
    assert_eq!(sent(&encrypting, encoded(JOB)).unwrap(), encrypted(PASSWORD, encoded(JOB)));
    assert_eq!(unique(&encrypting, encoded(JOB)), (id.clone(), None));

    // It sees the text before data_callback.
    let changing = with_unique(stages(None, &["s/web1/other/"], None), ID);
    assert_eq!(sent(&changing, encoded(JOB)).unwrap(), encoded(JOB.replace("web1", "other")));
    assert_eq!(unique(&changing, encoded(JOB)), (id, None));
}

#[test]
fn a_unique_id_that_is_none_leaves_the_jobs_own() {
    let callback = |text| with_unique(stages(None, &[], None), &[text]);
    assert_eq!(unique(&callback("s/nothing//"), encoded("abc")), (None, None));
    assert_eq!(unique(&callback("s/.*//s"), encoded("abc")), (None, None));
    assert_eq!(unique(&callback("s/a/x/"), encoded("a".repeat(63))).0.map(|id| id.len()), Some(63));
    let (id, warning) = unique(&callback("s/a/xx/"), encoded("a".repeat(63)));
    assert_eq!(id, None);
    assert!(warning.unwrap().contains("63 bytes"));
    let (id, warning) = unique(&callback("s/a/\\\\/"), encoded("a\0"));
    assert_eq!(id, None);
    assert!(warning.unwrap().contains("NUL"));
    // The id of the job before does not stay.
    let stages = callback("s/^id=//");
    let mut scratch = Scratch::default();
    let limits = Limits::of_size(100);
    assert_eq!(stages.apply(&encoded("id=1"), &mut scratch, &limits).unwrap().unique, Some(&b"1"[..]));
    assert_eq!(stages.apply(&encoded("none"), &mut scratch, &limits).unwrap().unique, None);
}

#[test]
fn explain_tells_every_step() {
    let limits = Limits::of_size(1 << 20);
    let callbacks = &["s/e/E/g", "s/x/y/", "s/E/e/ if /nothing/"];
    let stages = with_unique(stages(Some(PASSWORD), callbacks, Some(b"other")), &[r"s/.*host_name=(\w+).*/$1/s"]);
    let (steps, sent) = explained(&stages, encrypted(PASSWORD, JOB), &limits);
    let names: Vec<_> = steps.iter().map(|step| step.stage).collect();
    let callback = "data_callback";
    assert_eq!(names[..4], ["base64-decode", "decrypt", "uniq_callback", callback]);
    assert_eq!(names[4..], [callback, callback, "encrypt", "base64-encode"]);
    let outcomes: Vec<_> = steps.iter().map(|step| step.outcome.clone().unwrap()).collect();
    assert_eq!(outcomes[1], JOB.as_bytes());
    assert_eq!(outcomes[2], b"web1");
    assert_eq!(outcomes[4], JOB.replace('e', "E").as_bytes());
    assert_eq!(sent.as_ref(), Ok(&outcomes[7]));
    let first = &steps[3];
    assert_eq!(first.substitution.as_ref().unwrap().to_string(), "s/e/E/g");
    assert_eq!((first.matches, first.matched.len()), (JOB.matches('e').count(), 8));
    assert_eq!(first.matched[0], b"e");
    assert_eq!((steps[4].matches, steps[4].kept_off), (0, false));
    assert_eq!((steps[5].matches, steps[5].kept_off), (0, true));

    let (many, _) = explained(&self::stages(None, &["s/./x/gs"], None), encoded(JOB), &limits);
    assert_eq!((many[1].matches, many[1].matched.len()), (JOB.len(), 10), "the first ten are enough");

    let (failed, sent) = explained(&stages, encrypted(b"wrong", JOB), &limits);
    assert_eq!(sent, Err(Undeliverable::WrongPassword.into()));
    assert_eq!(failed.len(), 2);
    assert_eq!((failed[1].stage, &failed[1].outcome), ("decrypt", &None));
}

#[test]
fn a_guard_sees_the_text_as_it_is_at_that_point() {
    let guarded = stages(None, &["s/web1/web2/ if /^type=host$/m", "s/type=host/type=x/ unless /web1/"], None);
    assert_eq!(
        sent(&guarded, encoded(JOB)).unwrap(),
        encoded(JOB.replace("web1", "web2").replace("type=host", "type=x"))
    );
    let other = JOB.replace("type=host", "type=service");
    assert_eq!(sent(&guarded, encoded(&other)).unwrap(), encoded(&other));
}

#[test]
fn what_is_sent_is_no_larger_than_max_job_size() {
    // Every way to send, just large enough and a byte too large.
    for (stages, data) in [
        (stages(None, &["s/a/aa/g"], None), encoded("a".repeat(300))),
        (stages(None, &["s/a/aa/g"], Some(PASSWORD)), encoded("a".repeat(300))),
        (stages(Some(PASSWORD), &["s/a/aa/g"], Some(PASSWORD)), encrypted(PASSWORD, "a".repeat(300))),
        (stages(Some(PASSWORD), &["s/b/aa/g"], None), encrypted(PASSWORD, "a".repeat(300))),
        (stages(Some(PASSWORD), &[], Some(b"other")), encrypted(PASSWORD, "a".repeat(300))),
        (stages(None, &[], Some(PASSWORD)), "a".repeat(300).into_bytes()),
        (with_unique(stages(None, &[], Some(PASSWORD)), &["s/a/b/g"]), encoded("a".repeat(300))),
    ] {
        let size = sent(&stages, &data).unwrap().len();
        assert_eq!(sent_within(size, &stages, &data).unwrap().len(), size);
        assert_eq!(sent_within(size - 1, &stages, &data), Err(Undeliverable::OutcomeTooLarge));
    }
    // A text on the way counts, too.
    let back = stages(None, &["s/a/aaaa/g", "s/.*//s"], None);
    assert_eq!(sent_within(800, &back, encoded("a".repeat(300))), Err(Undeliverable::OutcomeTooLarge));
}

#[test]
fn a_job_that_grows_without_end_is_refused_while_it_grows() {
    let stages = stages(None, &[&format!("s/a/{}/g", "$&".repeat(100))], None);
    let data = encoded(vec![b'a'; 20 << 20]);
    let mut scratch = Scratch::default();
    let outcome = stages.apply(&data, &mut scratch, &Limits::of_size(64 << 20));
    assert_eq!(outcome, Err(Undeliverable::OutcomeTooLarge.into()));
    assert!(scratch.capacity() < 100 << 20, "{} bytes", scratch.capacity());
    scratch.trim();
    assert!(scratch.capacity() < 2 << 20, "{} bytes", scratch.capacity());
}

#[test]
fn work_without_end_is_refused_and_a_stop_is_prompt() {
    let stages = stages(None, &["s/a.*?b|a/x/gs"], None);
    let data = encoded(vec![b'a'; 1 << 20]);
    let mut scratch = Scratch::default();
    let stop = AtomicBool::new(false);
    let limits = Limits { max_size: 64 << 20, cpu: Duration::from_millis(500), stop: &stop };
    let began = Instant::now();
    assert_eq!(stages.apply(&data, &mut scratch, &limits), Err(Undeliverable::TooMuchWork.into()));
    assert!(began.elapsed() >= limits.cpu);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(stages.apply(&data, &mut scratch, &limits), Err(Failure::Stopped));
    // What is no work is still delivered.
    assert_eq!(stages.apply(&encoded("a"), &mut scratch, &limits).unwrap().data, encoded("x"));
}

#[test]
fn the_time_of_a_job_is_read_from_its_readable_text() {
    for (text, time) in [
        ("type=host\nstart_time=5.0\ncore_time=1700000000.123456\n", Some(1_700_000_000_123)),
        ("type=service\nhost_name=a\nstart_time=5.0\nfinish_time=6\n", None),
        ("type=passive\nhost_name=a\ncore_time=4\nstart_time=5.0\nfinish_time=6.5\n", Some(6500)),
        ("host_name=a\nstart_time=5.05\noutput=finish_time=6\n", Some(5050)),
        ("host_name=a\nfinish_time=0.0\nstart_time=5\r\n", Some(5000)),
        ("host_name=a\nfinish_time=0\nstart_time=0.0\n", None),
        ("core_time=7", Some(7000)),
        ("DATATYPE::SERVICEPERFDATA\tTIMET::1", None),
        ("host_name=a\nfinish_time=-5\nstart_time=x\n", None),
        ("host_name=a\nfinish_time=99999999999999999999\n", None),
        ("host_name=a\nfinish_time=18446744073709551615\n", None),
        ("host_name=a\nfinish_time=.5\n", None),
        ("host_name=gr\u{fc}n\nfinish_time=5.\n", Some(5000)),
        ("", None),
    ] {
        assert_eq!(job_time(text.as_bytes()), time, "{text:?}");
    }

    let time = |stages: Stages, data: Vec<u8>| {
        let stages = Stages { reads_time: true, ..stages };
        assert!(!stages.is_identity());
        let mut scratch = Scratch::default();
        let staged = stages.apply(&data, &mut scratch, &Limits::of_size(1 << 20)).unwrap();
        assert_eq!(Ok(staged.data), sent(&Stages { reads_time: false, ..stages.clone() }, &data).as_deref());
        staged.time
    };
    let text = "type=host\ncore_time=7.0\n";
    assert_eq!(time(stages(None, &[], None), encoded(text)), Some(7000));
    assert_eq!(time(stages(None, &[], None), text.into()), None, "not base64: it passes");
    assert_eq!(time(stages(None, &[], Some(PASSWORD)), encoded(text)), Some(7000));
    assert_eq!(time(stages(Some(PASSWORD), &[], None), encrypted(PASSWORD, text)), Some(7000));
    assert_eq!(time(stages(None, &["s/7/8/"], None), encoded(text)), Some(7000), "before callbacks");
}
