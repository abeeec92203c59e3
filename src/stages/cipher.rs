//! Mod-Gearman's encryption (its `common/crypt.c` and `gm_crypt.c`): AES-256 in ECB mode.

use std::fmt;
use std::hint;
use std::sync::Arc;

use aes::Aes256;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

use super::Undeliverable;
use super::bounds::reserve;

/// Bytes of a cipher block; an encrypted text is a multiple of it.
pub const BLOCK_SIZE: usize = 16;

/// Bytes of a key.
const KEY_SIZE: usize = 32;

/// Encrypts and decrypts with one password. Its clones share one key schedule, and nothing else is kept of the password.
#[derive(Clone)]
pub struct Cipher(Arc<Aes256>);

impl Cipher {
    /// The key is the password, cut or padded with NULs to 32 bytes.
    pub fn new(password: &[u8]) -> Cipher {
        let mut key = Array::from([0; KEY_SIZE]);
        key.iter_mut().zip(password).for_each(|(to, from)| *to = *from);
        let aes = Aes256::new(&key);
        key.fill(0);
        // Else the compiler may leave out what is never read.
        hint::black_box(&key);
        Cipher(Arc::new(aes))
    }

    /// Encrypts a text in place, which gets one NUL (Mod-Gearman's C decoder reads past a text that has none) and then
    /// as many as it takes to fill the last block.
    ///
    /// # Errors
    /// There is no memory.
    pub fn encrypt(&self, text: &mut Vec<u8>) -> Result<(), Undeliverable> {
        let size = (text.len() + 1).next_multiple_of(BLOCK_SIZE);
        reserve(text, size)?;
        text.resize(size, 0);
        let (blocks, _) = Array::slice_as_chunks_mut(text);
        self.0.encrypt_blocks(blocks);
        Ok(())
    }

    /// Decrypts in place and drops the NULs at the end. Nothing tells whether the password was the right one.
    ///
    /// # Errors
    /// The length is not a multiple of [`BLOCK_SIZE`]; the text is as it was.
    pub fn decrypt(&self, text: &mut Vec<u8>) -> Result<(), Undeliverable> {
        let (blocks, rest) = Array::slice_as_chunks_mut(text);
        if !rest.is_empty() {
            return Err(Undeliverable::BrokenBlock);
        }
        self.0.decrypt_blocks(blocks);
        let end = text.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        text.truncate(end);
        Ok(())
    }
}

impl PartialEq for Cipher {
    /// Whether the passwords are the same as far as they count: told by what becomes of a block, since keys are not kept.
    fn eq(&self, other: &Self) -> bool {
        let mark = |cipher: &Cipher| {
            let mut block = Array::from(*b"the same key as ");
            cipher.0.encrypt_block(&mut block);
            block
        };
        Arc::ptr_eq(&self.0, &other.0) || mark(self) == mark(other)
    }
}

impl fmt::Debug for Cipher {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cipher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_key_schedule() {
        let cipher = Cipher::new(b"secret");
        assert!(Arc::ptr_eq(&cipher.0, &cipher.clone().0));
        assert_eq!(size_of::<Cipher>(), size_of::<usize>(), "nothing beside it");
    }

    #[test]
    fn equal_by_the_part_of_the_password_that_counts() {
        assert_eq!(Cipher::new(&[b'a'; 40]), Cipher::new(&[b'a'; 32]));
        assert_eq!(Cipher::new(b"a\0"), Cipher::new(b"a"));
        assert_ne!(Cipher::new(b"a"), Cipher::new(b"b"));
        assert_ne!(Cipher::new(&[b'a'; 32]), Cipher::new(&[b'a'; 31]));
    }
}
