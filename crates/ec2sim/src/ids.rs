//! Identifiers and other chance, from one seed: the same requests in the same order get the same answers.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Makes identifiers as AWS does.
#[derive(Debug)]
pub(crate) struct Ids(StdRng);

impl Ids {
    pub(crate) fn new(seed: u64) -> Ids {
        Ids(StdRng::seed_from_u64(seed))
    }

    /// An identifier of 17 hexadecimal digits behind a prefix, as `i-0123456789abcdef0`.
    pub(crate) fn resource(&mut self, prefix: &str) -> String {
        let digits = self.0.random::<u64>();
        let last = self.0.random_range(0..16u8);
        format!("{prefix}-{digits:016x}{last:x}")
    }

    /// An identifier of a request for spot capacity, which has a form of its own.
    pub(crate) fn spot_request(&mut self) -> String {
        let letters = b"abcdefghijkmnpqrstuvwxyz0123456789";
        let text: String = (0..8).map(|_| char::from(letters[self.0.random_range(0..letters.len())])).collect();
        format!("sir-{text}")
    }

    /// An identifier of a request.
    pub(crate) fn request(&mut self) -> String {
        let (high, low) = (self.0.random::<u64>(), self.0.random::<u64>());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            0x8000 | ((low >> 48) & 0x3fff),
            low & 0xffff_ffff_ffff
        )
    }

    /// A hardware address out of the range that EC2 uses.
    pub(crate) fn mac(&mut self) -> String {
        let bytes: [u8; 5] = self.0.random();
        let rest: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("02:{}", rest.join(":"))
    }

    /// A number below `below`.
    pub(crate) fn below(&mut self, below: u32) -> u32 {
        self.0.random_range(0..below)
    }
}
