//! Mod-Gearman's encryption (its `common/crypt.c` and `gm_crypt.c`): AES-256 in ECB mode.

use std::fmt;

use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

/// Bytes of a cipher block; an encrypted text is a multiple of it.
pub const BLOCK_SIZE: usize = 16;

/// Bytes of a key.
const KEY_SIZE: usize = 32;

/// Encrypts and decrypts with one password.
#[derive(Clone)]
pub struct Cipher {
    key: [u8; KEY_SIZE],
    aes: Aes256,
}

impl Cipher {
    /// The key is the password, cut or padded with NULs to 32 bytes.
    pub fn new(password: &[u8]) -> Cipher {
        let mut key = [0; KEY_SIZE];
        for (to, from) in key.iter_mut().zip(password) {
            *to = *from;
        }
        Cipher { key, aes: Aes256::new(&Array::from(key)) }
    }

    /// Encrypts a text in place, which gets one NUL (Mod-Gearman's C decoder reads past a text that has none) and then
    /// as many as it takes to fill the last block.
    pub fn encrypt(&self, text: &mut Vec<u8>) {
        text.resize((text.len() + 1).next_multiple_of(BLOCK_SIZE), 0);
        let (blocks, _) = Array::slice_as_chunks_mut(text);
        self.aes.encrypt_blocks(blocks);
    }

    /// Decrypts in place and drops the NULs at the end. Nothing tells whether the password was the right one.
    ///
    /// # Errors
    /// The length is no multiple of [`BLOCK_SIZE`]; the text is as it was.
    pub fn decrypt(&self, text: &mut Vec<u8>) -> Result<(), BrokenBlock> {
        let (blocks, rest) = Array::slice_as_chunks_mut(text);
        if !rest.is_empty() {
            return Err(BrokenBlock);
        }
        self.aes.decrypt_blocks(blocks);
        let end = text.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        text.truncate(end);
        Ok(())
    }
}

/// An encrypted text whose length is no multiple of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokenBlock;

impl PartialEq for Cipher {
    /// Whether the passwords are the same as far as they count.
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl fmt::Debug for Cipher {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}
