//! Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), written
//! from the paper: a round multiplies two of the four words by constants, swaps the high halves across and xors
//! them with the key and the other two words; the key grows by Weyl constants between rounds.

/// The four 32-bit numbers at `counter` under `key`.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut words, mut key) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let left = u64::from(words[0]) * 0xD251_1F53;
        let right = u64::from(words[2]) * 0xCD9E_8D57;
        let high = |product: u64| (product >> 32) as u32;
        words = [high(right) ^ words[1] ^ key[0], right as u32, high(left) ^ words[3] ^ key[1], left as u32];
    }
    words
}

/// Standard Gumbel noise `-ln(-ln(u))` of `token` in the draw at `position` under `seed`.
///
/// Token `t` takes word `t % 4` of the block at counter `[t / 4, position, 0, 0]` under key `seed`; the word's
/// upper 23 bits choose one of `2^23` equal cells of the unit interval, and `u` is its middle.
pub fn gumbel(seed: u64, position: u32, token: u32) -> f64 {
    let block = philox4x32_10([token / 4, position, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let u = (f64::from(block[token as usize % 4] >> 9) + 0.5) / f64::from(1 << 23);
    -(-u.ln()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123, philox4x32 10.
    #[test]
    fn random123_known_answers() {
        assert_eq!(philox4x32_10([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32_10([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn gumbel_has_the_mean_and_variance_of_a_gumbel_distribution() {
        let n = 200_000;
        let draws: Vec<f64> = (0..n).map(|i| gumbel(7, i / 1000, i % 1000)).collect();
        let mean = draws.iter().sum::<f64>() / f64::from(n);
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        // Euler's constant and pi^2 / 6; standard errors 0.0029 and 0.0077, five of each allowed.
        assert!((mean - 0.577_215_66).abs() < 0.0145, "{mean}");
        assert!((variance - 1.644_934).abs() < 0.0385, "{variance}");
    }
}
