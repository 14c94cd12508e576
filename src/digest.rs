//! A rolling digest of replicated state.
//!
//! Two members at the same applied index must hold the same state. The digest makes that cheap to check:
//! every change is mixed in as it is applied, so comparing two members is comparing two numbers. It
//! guards against bugs, not against an adversary, so 64 bits of a fast, fixed mixing function are enough.

/// Digest of a sequence of values: equal sequences give equal digests, on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest(u64);

impl Digest {
    /// A digest that was stored.
    pub fn from_value(value: u64) -> Self {
        Digest(value)
    }

    pub fn value(self) -> u64 {
        self.0
    }

    /// Mixes one number in.
    pub fn add(&mut self, value: u64) {
        // The finalizer of a 64-bit linear congruential generator's output: every bit of the state and
        // the value reaches every bit of the result.
        let mut x = self.0.rotate_left(23) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = x ^ (x >> 31);
    }

    /// Mixes bytes in, with their length.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.add(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0u8; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_length_and_value_all_matter() {
        let of = |values: &[u64]| {
            let mut digest = Digest::default();
            values.iter().for_each(|value| digest.add(*value));
            digest
        };
        assert_eq!(of(&[1, 2]), of(&[1, 2]));
        assert_ne!(of(&[1, 2]), of(&[2, 1]));
        assert_ne!(of(&[1]), of(&[1, 0]));
        let mut short = Digest::default();
        short.add_bytes(b"ab");
        let mut padded = Digest::default();
        padded.add_bytes(b"ab\0");
        assert_ne!(short, padded);
    }
}
