//! Numbers and bytes without a pattern, the same for the same seed.

/// A sequence that a seed decides.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub const fn new(seed: u64) -> Self {
        // Zero would be followed by nothing but zeros.
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    /// The next number.
    pub const fn draw(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`, which must not be zero.
    pub fn below(&mut self, end: usize) -> usize {
        let end = end as u64;
        usize::try_from((self.draw() >> 20) % end).expect("it is below a usize")
    }
}

/// `len` bytes of the sequence of `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let next = || random.draw().to_le_bytes()[3];
    std::iter::repeat_with(next).take(len).collect()
}
