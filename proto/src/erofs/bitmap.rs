//! A set of small numbers.

/// One bit per number below a fixed bound.
#[derive(Debug)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    len: usize,
}

impl Bitmap {
    /// The empty set of numbers below `len`.
    pub(super) fn new(len: usize) -> Self {
        Self {
            words: vec![0; len.div_ceil(64)],
            len,
        }
    }

    /// Adds `number`; false if it was there already or is out of bounds.
    pub(super) fn insert(&mut self, number: usize) -> bool {
        if number >= self.len {
            return false;
        }
        let (word, bit) = (&mut self.words[number / 64], 1 << (number % 64));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Whether `number` is in the set.
    pub(super) fn contains(&self, number: usize) -> bool {
        number < self.len && self.words[number / 64] & (1 << (number % 64)) != 0
    }

    /// The numbers that are not in the set, ascending.
    pub(super) fn absent(&self) -> impl Iterator<Item = usize> + '_ {
        let len = self.len;
        self.words.iter().enumerate().flat_map(move |(i, &word)| {
            let mut rest = !word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                rest &= rest.wrapping_sub(1);
                (bit < 64).then_some(i * 64 + bit as usize)
            })
            .take_while(move |&number| number < len)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once_and_bounds_hold() {
        let mut set = Bitmap::new(70);
        assert!(set.insert(0) && set.insert(69) && !set.insert(69) && !set.insert(70));
        assert!(set.contains(69) && !set.contains(68) && !set.contains(70));
        let absent: Vec<_> = set.absent().collect();
        assert_eq!(absent, (1..69).collect::<Vec<_>>());
    }
}
