//! Checks of what arrived: SHA-256, and the `cksum` of POSIX for hosts that have nothing better.

use sha2::{Digest, Sha256};

/// In lower-case hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The remainder for each first byte.
const REMAINDERS: [u32; 256] = remainders();

const fn remainders() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = (byte as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 0x8000_0000 == 0 { rest << 1 } else { (rest << 1) ^ 0x04c1_1db7 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
}

/// What `cksum` prints first: the bytes and then their count, the lowest byte first, as one number's remainder.
pub(crate) fn cksum(bytes: &[u8]) -> u32 {
    let count = (bytes.len() as u64).to_le_bytes();
    let length = count.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let all = bytes.iter().chain(&count[..length]);
    !all.fold(0_u32, |rest, byte| (rest << 8) ^ REMAINDERS[usize::from((rest >> 24) as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_programs() {
        let check = |text: &str, expected: u32| assert_eq!(cksum(text.as_bytes()), expected, "{text:?}");
        check("", 4_294_967_295);
        check("123456789", 930_766_865);
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
