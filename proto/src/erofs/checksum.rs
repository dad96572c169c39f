//! The superblock's checksum.

/// CRC-32C as EROFS uses it: reflected polynomial 0x1EDC6F41, begun with all ones, not inverted at
/// the end. It runs over one block per image, so a table would cost more than it saves.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C in the usual catalogues is that of the inverted form.
    #[test]
    fn checksum_has_the_published_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }
}
