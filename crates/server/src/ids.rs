//! The only place that rolls dice.

use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use uuid::Uuid;

/// A source of identifiers and other chance: the machine's, or one that repeats itself.
#[derive(Debug, Clone)]
pub enum Ids {
    /// The machine's.
    Random,
    /// Made from a seed.
    Seeded(Arc<Mutex<StdRng>>),
}

impl Ids {
    /// A source that gives the same identifiers for the same seed.
    pub fn seeded(seed: u64) -> Ids {
        Ids::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A new identifier, always a UUID of version 4.
    pub fn id<T: From<Uuid>>(&self) -> T {
        let bytes = self.bytes::<16>();
        T::from(uuid::Builder::from_random_bytes(bytes).into_uuid())
    }

    /// Random bytes, fit for keys unless seeded.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        match self {
            Ids::Random => rand::rng().fill_bytes(&mut bytes),
            Ids::Seeded(rng) => rng.lock().expect("nobody panics while holding the dice").fill_bytes(&mut bytes),
        }
        bytes
    }

    /// A number below `limit`, which is at least 1.
    pub fn below(&self, limit: u32) -> u32 {
        match self {
            Ids::Random => rand::rng().random_range(0..limit),
            Ids::Seeded(rng) => rng.lock().expect("nobody panics while holding the dice").random_range(0..limit),
        }
    }
}
