//! The stages of a forward, from a job's data to what is sent.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use gearman_proxy::stages::cipher::Cipher;
use gearman_proxy::stages::substitution::Substitution;
use gearman_proxy::stages::{Scratch, Stages, Undeliverable, base64};

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
    base64::encode(text.as_ref(), &mut encoded);
    encoded
}

fn encrypted(password: &[u8], text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut text = text.as_ref().to_vec();
    Cipher::new(password).encrypt(&mut text);
    encoded(text)
}

fn stages(decrypt: Option<&[u8]>, data_callbacks: &[&str], encrypt: Option<&[u8]>) -> Stages {
    Stages {
        decrypt: decrypt.map(Cipher::new),
        data_callbacks: data_callbacks.iter().map(|text| Substitution::parse(text).unwrap()).collect(),
        uniq_callbacks: Vec::new(),
        encrypt: encrypt.map(Cipher::new),
    }
}

fn with_unique(mut stages: Stages, uniq_callbacks: &[&str]) -> Stages {
    stages.uniq_callbacks = uniq_callbacks.iter().map(|text| Substitution::parse(text).unwrap()).collect();
    stages
}

fn sent(stages: &Stages, data: impl AsRef<[u8]>) -> Result<Vec<u8>, Undeliverable> {
    let mut scratch = Scratch::default();
    let first = stages.apply(data.as_ref(), &mut scratch).map(|staged| staged.data.to_vec());
    let again = stages.apply(data.as_ref(), &mut scratch).map(|staged| staged.data.to_vec());
    assert_eq!(first, again, "buffers used before change nothing");
    assert_eq!(stages.explain(data.as_ref()).sent, first, "explained as applied");
    first
}

fn unique(stages: &Stages, data: impl AsRef<[u8]>) -> (Option<Vec<u8>>, Option<&'static str>) {
    let mut scratch = Scratch::default();
    let staged = stages.apply(data.as_ref(), &mut scratch).unwrap();
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
    for reason in [Undeliverable::NotBase64, Undeliverable::BrokenBlock, Undeliverable::WrongPassword] {
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
    assert_eq!(stages.apply(&encoded("id=1"), &mut scratch).unwrap().unique, Some(&b"1"[..]));
    assert_eq!(stages.apply(&encoded("none"), &mut scratch).unwrap().unique, None);
}

#[test]
fn explain_tells_every_step() {
    let stages =
        with_unique(stages(Some(PASSWORD), &["s/e/E/g", "s/x/y/"], Some(b"other")), &[r"s/.*host_name=(\w+).*/$1/s"]);
    let explanation = stages.explain(&encrypted(PASSWORD, JOB));
    let names: Vec<_> = explanation.steps.iter().map(|step| step.stage).collect();
    assert_eq!(
        names,
        ["base64-decode", "decrypt", "uniq_callback", "data_callback", "data_callback", "encrypt", "base64-encode"]
    );
    let outcomes: Vec<_> = explanation.steps.iter().map(|step| step.outcome.clone().unwrap()).collect();
    assert_eq!(outcomes[1], JOB.as_bytes());
    assert_eq!(outcomes[2], b"web1");
    assert_eq!(outcomes[4], JOB.replace('e', "E").as_bytes());
    assert_eq!(explanation.sent.as_ref(), Ok(&outcomes[6]));
    assert_eq!(explanation.unique.as_deref(), Some(&b"web1"[..]));
    let first = explanation.steps[3].substitution.as_ref().unwrap();
    assert_eq!((first.text.as_str(), first.matches, first.matched.len()), ("s/e/E/g", JOB.matches('e').count(), 8));
    assert_eq!(first.matched[0], b"e");
    assert_eq!(explanation.steps[4].substitution.as_ref().unwrap().matches, 0);

    let many = self::stages(None, &["s/./x/gs"], None).explain(&encoded(JOB));
    let many = many.steps[1].substitution.as_ref().unwrap();
    assert_eq!((many.matches, many.matched.len()), (JOB.len(), 10), "the first ten are enough");

    let failed = stages.explain(&encrypted(b"wrong", JOB));
    assert_eq!(failed.sent, Err(Undeliverable::WrongPassword));
    assert_eq!(failed.steps.len(), 2);
    assert_eq!(failed.steps[1].stage, "decrypt");
    assert_eq!(failed.steps[1].outcome, Err(Undeliverable::WrongPassword));
}
