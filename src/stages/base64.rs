//! Mod-Gearman's base64: written without line breaks, read with any white space in it.
//!
//! Padding must be there and right: Perl's MIME::Base64 and old Mod-Gearman do without, but the decoder of today's
//! Mod-Gearman (OpenSSL's `EVP_DecodeBlock`) does not, and a text cut short must not pass for a whole one. Like all of
//! them it ignores the unused bits of the last character.

use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeSliceError, Engine, decoded_len_estimate};

const ENGINE: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// A text that is no base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotBase64;

/// Decodes `data` into `decoded`, whose content is replaced; `joined` is used where white space stands inside the data.
///
/// # Errors
/// There is something else in the data than base64 and white space, or its padding is missing or wrong.
pub fn decode(data: &[u8], decoded: &mut Vec<u8>, joined: &mut Vec<u8>) -> Result<(), NotBase64> {
    let end = data.iter().rposition(|&byte| !is_white_space(byte)).map_or(0, |last| last + 1);
    let data = data.get(..end).unwrap_or_default();
    // Older senders break lines; today's data has no white space and needs no look at each byte.
    if decode_joined(data, decoded).is_ok() {
        return Ok(());
    }
    if !data.iter().copied().any(is_white_space) {
        return Err(NotBase64);
    }
    joined.clear();
    joined.extend(data.iter().copied().filter(|&byte| !is_white_space(byte)));
    decode_joined(joined, decoded)
}

fn decode_joined(data: &[u8], decoded: &mut Vec<u8>) -> Result<(), NotBase64> {
    decoded.resize(decoded_len_estimate(data.len()), 0);
    match ENGINE.decode_slice(data, decoded) {
        Ok(length) => {
            decoded.truncate(length);
            Ok(())
        }
        Err(DecodeSliceError::DecodeError(_) | DecodeSliceError::OutputSliceTooSmall) => Err(NotBase64),
    }
}

/// Encodes `data` into `encoded`, whose content is replaced.
pub fn encode(data: &[u8], encoded: &mut Vec<u8>) {
    encoded.resize(data.len().div_ceil(3).saturating_mul(4), 0);
    let length = ENGINE.encode_slice(data, encoded);
    debug_assert_eq!(length.ok(), Some(encoded.len()));
}

/// As C's `isspace`.
fn is_white_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ')
}
