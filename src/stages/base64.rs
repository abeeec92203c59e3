//! Mod-Gearman's base64: written without line breaks, read with any white space in it.
//!
//! Padding must be there and right: Perl's MIME::Base64 and old Mod-Gearman do without, but the decoder of today's
//! Mod-Gearman (OpenSSL's `EVP_DecodeBlock`) does not, and a text cut short must not pass for a whole one. Like all of
//! them it ignores the unused bits of the last character.

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, decoded_len_estimate};

use super::Undeliverable;
use super::bounds::reserve;

const ENGINE: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// Decodes `data` into `decoded`, whose content is replaced; `joined` is used where white space stands inside the data.
///
/// # Errors
/// There is something else in the data than base64 and white space, or its padding is missing or wrong; or there is no
/// memory.
pub fn decode(data: &[u8], decoded: &mut Vec<u8>, joined: &mut Vec<u8>) -> Result<(), Undeliverable> {
    let data = data.trim_ascii_end();
    // Older senders break lines; today's data has no white space and needs no look at each byte.
    let outcome = decode_joined(data, decoded);
    if outcome.is_ok() || !data.iter().copied().any(is_white_space) {
        return outcome;
    }
    joined.clear();
    reserve(joined, data.len())?;
    joined.extend(data.iter().copied().filter(|&byte| !is_white_space(byte)));
    decode_joined(joined, decoded)
}

fn decode_joined(data: &[u8], decoded: &mut Vec<u8>) -> Result<(), Undeliverable> {
    let most = decoded_len_estimate(data.len());
    reserve(decoded, most)?;
    decoded.resize(most, 0);
    let length = ENGINE.decode_slice(data, decoded).map_err(|_| Undeliverable::NotBase64)?;
    decoded.truncate(length);
    Ok(())
}

/// Encodes `data` into `encoded`, whose content is replaced.
///
/// # Errors
/// There is no memory.
pub fn encode(data: &[u8], encoded: &mut Vec<u8>) -> Result<(), Undeliverable> {
    let length = data.len().div_ceil(3).saturating_mul(4);
    reserve(encoded, length)?;
    encoded.resize(length, 0);
    let written = ENGINE.encode_slice(data, encoded);
    debug_assert_eq!(written.ok(), Some(length));
    Ok(())
}

/// As C's `isspace`.
fn is_white_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}
