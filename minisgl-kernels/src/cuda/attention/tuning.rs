//! Which attention kernels run, and how their work is divided between them. Pure host functions; the measurements
//! behind the choices are in docs/kernels/attention.md.

use crate::cuda::options::AttnKernel;
use crate::{KernelError, Result};

/// Query rows (query tokens x heads of a group) of a sequence up to which decode takes it in a mixed batch: two
/// of decode's tiles of 8. Beyond, reading the KV once for each 8 rows costs more than a prefill tile that is
/// mostly empty; below, a prefill tile would leave a long KV to a single CTA for each head.
const MIXED_DECODE_ROWS: u32 = 16;

/// What a device and a model offer to choose from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    /// Whether the tensor core kernels have an instance for the head size.
    pub(super) has_mma: bool,
    /// Compute capability as `10 * major + minor`.
    pub(super) sm: u32,
    pub(super) head_dim: usize,
    pub(super) page_size: usize,
}

/// The families that run a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Families {
    /// `Fa`, `Trtllm`, or `Fi`: then decode's kernel takes every sequence.
    pub(super) prefill: AttnKernel,
    /// `Fi`, `Trtllm`, or `Fa`: then prefill's kernel takes every sequence.
    pub(super) decode: AttnKernel,
}

/// Resolves what the user asked for; none where only the plain kernel has the head size.
///
/// `auto` is `fa` for prefill, whose kernels are `trtllm`'s too and take pages of any size, and `fi` for decode, which
/// is as fast as `trtllm` on large batches and faster on small ones.
///
/// # Errors
/// [`KernelError::Unsupported`] where a family that was named cannot run.
pub(super) fn choose(prefill: AttnKernel, decode: AttnKernel, offer: &Offer) -> Result<Option<Families>> {
    let unsupported = |what: String, supported: &str| {
        Err(KernelError::Unsupported { op: "attention", what, supported: supported.into() })
    };
    if [prefill, decode].contains(&AttnKernel::Trtllm) {
        if offer.sm < 90 {
            let what = format!("trtllm on compute capability {}.{}", offer.sm / 10, offer.sm % 10);
            return unsupported(what, "trtllm needs 9.0 or later; fa, fi and auto run here");
        }
        if ![16, 32, 64].contains(&offer.page_size) {
            let what = format!("trtllm with page_size {}", offer.page_size);
            return unsupported(what, "trtllm moves pages of 16, 32 or 64 tokens; fa, fi and auto take any");
        }
        if !offer.has_mma {
            let what = format!("trtllm with head_dim {}", offer.head_dim);
            return unsupported(what, "trtllm has head_dim 64, 96, 128 and 256; fa, fi and auto take any");
        }
    }
    let families = Families {
        prefill: if prefill == AttnKernel::Auto { AttnKernel::Fa } else { prefill },
        decode: if decode == AttnKernel::Auto { AttnKernel::Fi } else { decode },
    };
    if families.prefill == AttnKernel::Fi && families.decode == AttnKernel::Fa {
        return unsupported(
            "the pair fi,fa".into(),
            "fi takes prefill only together with decode; fa,fi is the usual pair, and fi and fa run alone",
        );
    }
    Ok(offer.has_mma.then_some(families))
}

/// Most query rows of a sequence that decode takes in a step of these sizes; `u32::MAX`: it takes all.
///
/// A function of the sizes alone, because a CUDA graph is captured for sizes: a step with no more tokens than
/// sequences is decoding, whatever its lengths.
pub(super) fn decode_rows(families: &Families, num_tokens: usize, num_seqs: usize) -> u32 {
    if families.decode == AttnKernel::Fa {
        0
    } else if families.prefill == AttnKernel::Fi || num_tokens <= num_seqs {
        u32::MAX
    } else {
        MIXED_DECODE_ROWS
    }
}

/// Most query rows of a sequence that decode takes in a step of these sizes; `decode_rows` is what [`decode_rows`] says.
pub(super) fn max_decode_rows(decode_rows: u32, num_tokens: usize, num_seqs: usize, group: usize) -> usize {
    if num_tokens <= num_seqs { group } else { (num_tokens * group).min(decode_rows as usize) }
}

/// The longest context that goes to clusters of this many CTAs; `rotates` says whether decode's kernel would be the one
/// that rotates too, for which they always take a job each.
///
/// A job has no more CTAs than its cluster, so that beyond this ranges in a grid without clusters are faster; and where
/// the plan cuts ranges in clusters of 4 and 8, those fill the multiprocessors badly.
pub(super) fn max_cluster_kv_len(cluster_ctas: u32, rotates: bool) -> usize {
    match cluster_ctas {
        8 => 2048,
        4 if rotates => 2048,
        4 => 1024,
        2 if rotates => 1536,
        _ => usize::MAX,
    }
}

/// Sizes of the decode clusters that may share a job, largest first.
pub(super) const CLUSTER_CTAS: [u32; 4] = [8, 4, 2, 1];

/// How decode's grid is made up for at most `num_jobs` jobs: CTAs of a cluster, and of the grid.
///
/// The largest clusters of which the device holds one for each job at once: what a job's CTAs exchange then stays inside
/// of a cluster, where that is quick. Whether a step's work goes to clusters is for the plan to say, which sees the
/// lengths. `resident[i]` is how many clusters of `CLUSTER_CTAS[i]` the device holds, none where it has no clusters.
/// `rotates`: as of [`max_cluster_kv_len`].
pub(super) fn decode_grid(
    resident: &[u32; 4],
    num_jobs: usize,
    max_kv_len: usize,
    num_ctas: u32,
    rotates: bool,
) -> (u32, u32) {
    let ranges = (u32::from(resident[3] != 0), num_ctas);
    let fitting = CLUSTER_CTAS.iter().zip(resident).find(|&(_, &clusters)| num_jobs <= clusters as usize);
    match fitting {
        Some((&ctas, &clusters)) if ctas > 1 && max_kv_len <= max_cluster_kv_len(ctas, rotates) => {
            (ctas, (clusters * ctas).min(num_ctas))
        }
        _ => ranges,
    }
}

/// At least as many tiles of `tile_rows` query rows as prefill needs for a step of these sizes.
///
/// A sequence wastes at most one tile, and one that prefill takes has more than `decode_rows` rows.
pub(super) fn num_tiles(
    num_tokens: usize,
    num_seqs: usize,
    group: usize,
    tile_rows: usize,
    decode_rows: u32,
) -> usize {
    if decode_rows == u32::MAX {
        return 0;
    }
    let num_prefill = num_seqs.min(num_tokens / (decode_rows as usize / group + 1));
    num_tokens * group / tile_rows + num_prefill
}

#[cfg(test)]
mod tests {
    use super::AttnKernel::{Auto, Fa, Fi, Trtllm};
    use super::*;

    const HOPPER: Offer = Offer { has_mma: true, sm: 90, head_dim: 128, page_size: 16 };

    #[test]
    fn auto_runs_everywhere() {
        let families = Some(Families { prefill: Fa, decode: Fi });
        for (sm, page_size) in [(80, 1), (86, 16), (90, 256)] {
            let offer = Offer { sm, page_size, ..HOPPER };
            assert_eq!(choose(Auto, Auto, &offer).unwrap(), families);
        }
        let odd = Offer { has_mma: false, head_dim: 80, ..HOPPER };
        for kernel in [Auto, Fa, Fi] {
            assert_eq!(choose(kernel, kernel, &odd).unwrap(), None);
        }
    }

    #[test]
    fn jobs_go_to_the_largest_clusters_that_are_there_for_all_of_them() {
        let resident = [30, 62, 132, 264];
        let grid = |num_jobs, max_kv_len| decode_grid(&resident, num_jobs, max_kv_len, 264, false);
        assert_eq!(grid(8, 0), (8, 240));
        assert_eq!(grid(30, 2048), (8, 240));
        assert_eq!(grid(31, 0), (4, 248));
        assert_eq!(grid(63, 100_000), (2, 264));
        assert_eq!(grid(133, 0), (1, 264));
        assert_eq!(grid(1000, 0), (1, 264));
        // Long contexts of few jobs.
        assert_eq!(grid(8, 2049), (1, 264));
        assert_eq!(grid(31, 1025), (1, 264));
        // A device without clusters.
        assert_eq!(decode_grid(&[0; 4], 8, 0, 264, false), (0, 264));
        // With the kernel that rotates.
        let grid = |num_jobs, max_kv_len| decode_grid(&resident, num_jobs, max_kv_len, 264, true);
        assert_eq!(grid(31, 2048), (4, 248));
        assert_eq!(grid(63, 1536), (2, 264));
        assert_eq!(grid(63, 1537), (1, 264));
    }

    #[test]
    fn what_cannot_run_says_what_can() {
        let cases = [
            (Trtllm, Trtllm, Offer { sm: 80, ..HOPPER }, "8.0"),
            (Auto, Trtllm, Offer { page_size: 8, ..HOPPER }, "page_size 8"),
            (Trtllm, Auto, Offer { has_mma: false, head_dim: 80, ..HOPPER }, "head_dim 80"),
            (Fi, Fa, HOPPER, "fi,fa"),
        ];
        for (prefill, decode, offer, expected) in cases {
            let error = choose(prefill, decode, &offer).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("fa"), "{error}");
        }
        for (prefill, decode) in [(Fa, Fi), (Fa, Fa), (Fi, Fi), (Trtllm, Trtllm), (Fa, Trtllm), (Trtllm, Fi)]
        {
            assert_eq!(choose(prefill, decode, &HOPPER).unwrap(), Some(Families { prefill, decode }));
        }
    }

    #[test]
    fn a_family_alone_takes_every_sequence() {
        assert_eq!(decode_rows(&Families { prefill: Fa, decode: Fa }, 4, 4), 0);
        assert_eq!(decode_rows(&Families { prefill: Fi, decode: Fi }, 900, 4), u32::MAX);
        assert_eq!(decode_rows(&Families { prefill: Fa, decode: Fi }, 4, 4), u32::MAX);
        assert_eq!(decode_rows(&Families { prefill: Fa, decode: Fi }, 5, 4), MIXED_DECODE_ROWS);
    }

    #[test]
    fn decode_rows_of_a_sequence_are_bounded() {
        assert_eq!(max_decode_rows(u32::MAX, 4, 4, 7), 7);
        assert_eq!(max_decode_rows(MIXED_DECODE_ROWS, 900, 4, 7), 16);
        assert_eq!(max_decode_rows(MIXED_DECODE_ROWS, 5, 4, 2), 10);
        assert_eq!(max_decode_rows(u32::MAX, 900, 4, 7), 6300);
        assert_eq!(max_decode_rows(0, 900, 4, 7), 0);
    }

    /// Every way to cut up to 40 tokens into sequences of up to two lengths needs no more tiles than promised.
    #[test]
    fn tiles_suffice() {
        for group in [1, 3, 8] {
            for (short, long, num_long) in
                (1..8).flat_map(|s| (1..40).flat_map(move |l| (0..4).map(move |n| (s, l, n))))
            {
                for num_short in 0..6 {
                    let lens =
                        std::iter::repeat_n(short, num_short).chain(std::iter::repeat_n(long, num_long));
                    let (num_tokens, num_seqs) = (lens.clone().sum::<usize>(), num_short + num_long);
                    for rows in [0, MIXED_DECODE_ROWS] {
                        let prefill = lens.clone().filter(|len| len * group > rows as usize);
                        let needed: usize = prefill.map(|len| (len * group).div_ceil(16)).sum();
                        let promised = num_tiles(num_tokens, num_seqs, group, 16, rows);
                        assert!(
                            needed <= promised,
                            "{num_short} x {short}, {num_long} x {long}, {group}, {rows}"
                        );
                    }
                }
            }
        }
    }
}
