//! Jobs as Mod-Gearman sends them, encrypted.

use gearman_proxy::stages::cipher::Cipher;
use gearman_proxy::stages::{Limits, Scratch, Stages};

use super::SMALL;
use crate::load;
use crate::process::{Gearmand, Outcome};

/// Service checks as Mod-Gearman sends them, encrypted, 600 bytes each, and what is done to them.
pub struct Encrypted {
    pub jobs: Vec<Vec<u8>>,
    pub options: String,
}

const SOURCE_PASSWORD: &str = "the source's password";
const DESTINATION_PASSWORD: &str = "the destination's password";

impl Encrypted {
    pub fn new() -> Outcome<Encrypted> {
        let encrypt = Stages { encrypt: Some(Cipher::new(SOURCE_PASSWORD.as_bytes())), ..Stages::default() };
        let mut jobs = Vec::new();
        for number in 0..64 {
            let mut text = format!(
                "type=service\nresult_queue=check_results\ntarget_queue=hostgroup_network_b\nhost_name=switch-{number:03}\n\
                 service_description=Interface 1\nstart_time=1700000000.0\nnext_check=1700000000.0\ntimeout=60\n\
                 core_time=1700000000.123456\ncommand_line=/usr/lib/nagios/plugins/check_snmp -H 192.0.2.{number} -o"
            );
            // One length for all, which makes 600 bytes of base64.
            while text.len() < 440 {
                text.push_str(" .1.3.6.1.2.1.2.2.1.8");
            }
            text.truncate(440);
            text.push_str("\n\n\n");
            let mut scratch = Scratch::default();
            let job = encrypt
                .apply(text.as_bytes(), &mut scratch, &Limits::of_size(1 << 20))
                .map_err(|error| format!("{error:?}"))?;
            if job.data.len() != SMALL {
                return Err(format!("a job of {} bytes instead of {SMALL}", job.data.len()).into());
            }
            jobs.push(job.data.to_vec());
        }
        let options = format!(
            "    decrypt = {SOURCE_PASSWORD}\n    encrypt = {DESTINATION_PASSWORD}\n    \
             data_callback = s/^result_queue=.*$/result_queue=results_servicegroup_special/gm\n"
        );
        Ok(Encrypted { jobs, options })
    }

    /// Whether the stages have been applied to a job that arrived.
    pub fn check(destination: &Gearmand, queue: &str) -> Outcome<()> {
        let decrypt = Stages { decrypt: Some(Cipher::new(DESTINATION_PASSWORD.as_bytes())), ..Stages::default() };
        let job = load::take_one(destination.port, queue)?;
        let mut scratch = Scratch::default();
        let text =
            decrypt.apply(&job, &mut scratch, &Limits::of_size(1 << 20)).map_err(|error| format!("{error:?}"))?;
        let wanted = b"\nresult_queue=results_servicegroup_special\ntarget_queue=";
        let applied = text.data.windows(wanted.len()).any(|part| part == wanted);
        if applied { Ok(()) } else { Err("the callback has not been applied".into()) }
    }
}
