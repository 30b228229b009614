//! Keys and values of a tile, out of their pages and into f32.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::TILE;
use crate::cpu::simd::{Element, LANES, Simd, load_any};

/// The pages of one sequence.
#[derive(Clone, Copy)]
pub(super) struct Pages<'a> {
    pub(super) table: &'a [u32],
    pub(super) page_size: usize,
    pub(super) num_slots: usize,
    /// Receives a page that the storage does not have.
    pub(super) bad_page: &'a AtomicUsize,
}

impl Pages<'_> {
    /// The slot of a position, or `None` where the page table is wrong.
    #[inline(always)]
    fn slot(&self, position: usize) -> Option<usize> {
        let page = self.table[position / self.page_size] as usize;
        let slot = page * self.page_size + position % self.page_size;
        if slot >= self.num_slots {
            self.bad_page.store(page, Ordering::Relaxed);
            return None;
        }
        Some(slot)
    }
}

/// One head's columns of the key or value storage.
pub(super) struct Head<'a, E> {
    pub(super) rows: &'a [E],
    /// Columns of the storage, the head's first column, and its number of columns.
    pub(super) cols: usize,
    pub(super) first_col: usize,
    pub(super) head_dim: usize,
}

impl<E> Head<'_, E> {
    #[inline(always)]
    fn row(&self, slot: usize) -> &[E] {
        &self.rows[slot * self.cols + self.first_col..][..self.head_dim]
    }
}

/// Slots of the tile's positions `valid`; the others are not looked at.
#[inline(always)]
pub(super) fn slots(pages: &Pages<'_>, tile: usize, valid: Range<usize>) -> [Option<usize>; TILE] {
    let mut slots = [None; TILE];
    for i in valid {
        slots[i] = pages.slot(tile * TILE + i);
    }
    slots
}

/// `keys[d][i]` is element `d` of the key at position `i` of the tile; zero where there is none. `keys` has rows
/// of [`TILE`], `head_dim` rounded up to 16 of them.
#[inline(always)]
pub(super) fn gather_keys<S: Simd, E: Element>(
    s: S,
    head: &Head<'_, E>,
    slots: &[Option<usize>; TILE],
    keys: &mut [f32],
) {
    let zero = s.splat(0.0);
    for (i, slots) in slots.as_chunks::<LANES>().0.iter().enumerate() {
        let is_empty = slots.iter().all(Option::is_none);
        for d in (0..head.head_dim).step_by(LANES) {
            let end = head.head_dim.min(d + LANES);
            let mut block = [zero; LANES];
            if !is_empty {
                for (lane, slot) in block.iter_mut().zip(slots) {
                    if let Some(slot) = slot {
                        *lane = load_any(s, &head.row(*slot)[d..end]);
                    }
                }
                block = s.transpose(block);
            }
            for (j, lane) in block.iter().enumerate() {
                if let Some(dst) = keys[(d + j) * TILE + i * LANES..].first_chunk_mut() {
                    s.store_f32(*lane, dst);
                }
            }
        }
    }
}

/// `values[i]` is the value at position `i` of the tile, padded with zeros to `padded` columns; rows of
/// positions that have none are zero.
#[inline(always)]
pub(super) fn gather_values<S: Simd, E: Element>(
    s: S,
    head: &Head<'_, E>,
    slots: &[Option<usize>; TILE],
    padded: usize,
    values: &mut [f32],
) {
    for (slot, row) in slots.iter().zip(values.chunks_exact_mut(padded)) {
        match slot {
            Some(slot) => {
                let (dst, _) = row.as_chunks_mut::<LANES>();
                for (src, dst) in head.row(*slot).chunks(LANES).zip(dst) {
                    s.store_f32(load_any(s, src), dst);
                }
            }
            None => row.fill(0.0),
        }
    }
}
