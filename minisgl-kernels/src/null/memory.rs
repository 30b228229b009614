//! What a checked [`super::Null`] keeps in the KV storage: in the key row of a slot the token and its position, in
//! the value row a hash of the history that ends with it.

use crate::{KernelError, KvLayer, Result, SeqState};

/// The hash of no history.
pub(super) const EMPTY: u64 = 0x6A09_E667_F3BC_C908;

/// The hash of a history that goes on with `token`.
pub(super) fn chain(history: u64, token: u32) -> u64 {
    mix(history, u64::from(token) + 1)
}

/// SplitMix64's finaliser over both.
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let mut mixed = a.rotate_left(23) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// What one slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) token: u32,
    /// One more than the position, so that fresh memory holds no position.
    pub(super) position_plus_1: u32,
    pub(super) chain: u64,
}

impl Record {
    const BYTES: usize = 8;

    pub(super) fn store(self, op: &'static str, kv: &mut KvLayer<Vec<u8>>, slot: usize) -> Result<()> {
        let (k, v) = (offset(op, kv, slot)?, offset(op, kv, slot)?);
        kv.k.buf[k..k + 4].copy_from_slice(&self.token.to_le_bytes());
        kv.k.buf[k + 4..k + 8].copy_from_slice(&self.position_plus_1.to_le_bytes());
        kv.v.buf[v..v + 8].copy_from_slice(&self.chain.to_le_bytes());
        Ok(())
    }

    pub(super) fn load(op: &'static str, kv: &KvLayer<Vec<u8>>, slot: usize) -> Result<Self> {
        let at = offset(op, kv, slot)?;
        Ok(Self {
            token: get_u32(&kv.k.buf, at / 4),
            position_plus_1: get_u32(&kv.k.buf, at / 4 + 1),
            chain: u64::from(get_u32(&kv.v.buf, at / 4)) | u64::from(get_u32(&kv.v.buf, at / 4 + 1)) << 32,
        })
    }
}

/// Byte at which a slot's record starts.
fn offset(op: &'static str, kv: &KvLayer<Vec<u8>>, slot: usize) -> Result<usize> {
    if slot >= kv.k.rows {
        return Err(KernelError::Index { op, what: "slot", found: slot, limit: kv.k.rows });
    }
    let row_bytes = kv.k.cols * kv.k.dtype.size_bytes();
    // Records sit on multiples of 4 bytes whatever the row.
    let stride = row_bytes & !3;
    if stride < Record::BYTES {
        return Err(KernelError::Unsupported {
            op,
            what: format!("a checked KV row of {row_bytes} bytes"),
            supported: format!("{} bytes and more", Record::BYTES),
        });
    }
    Ok(slot * stride)
}

/// The slot that `position` of page-table row `row` lies in.
pub(super) fn slot_of(state: &SeqState<Vec<u8>>, page_size: usize, row: usize, position: usize) -> usize {
    let page = get_u32(&state.page_table, row * state.max_pages + position / page_size) as usize;
    page * page_size + position % page_size
}

/// Reads positions `first..kv_len` of `row` back and checks that they are one history; returns their tokens.
pub(super) fn read_history(
    kv: &KvLayer<Vec<u8>>,
    state: &SeqState<Vec<u8>>,
    row: usize,
    first: usize,
    kv_len: usize,
    tokens: &mut Vec<u32>,
) -> Result<()> {
    const OP: &str = "attention";
    tokens.clear();
    let mut before = if first == 0 { Some(EMPTY) } else { None };
    for position in first..kv_len {
        let slot = slot_of(state, kv.page_size, row, position);
        let record = Record::load(OP, kv, slot)?;
        let fault = if record.position_plus_1 == 0 {
            "was never stored".to_string()
        } else if record.position_plus_1 as usize != position + 1 {
            format!("holds position {}", record.position_plus_1 - 1)
        } else if before.is_some_and(|before| chain(before, record.token) != record.chain) {
            format!("holds token {} of another history", record.token)
        } else {
            before = Some(record.chain);
            tokens.push(record.token);
            continue;
        };
        return Err(KernelError::Device {
            op: OP,
            device: "null".into(),
            message: format!("position {position} of row {row} is read from slot {slot}, which {fault}"),
        });
    }
    Ok(())
}

/// The `idx`-th u32 of `buf`.
pub(super) fn get_u32(buf: &[u8], idx: usize) -> u32 {
    let bytes = buf[4 * idx..4 * idx + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes)
}

/// Sets the `idx`-th u32 of `buf`.
pub(super) fn set_u32(buf: &mut [u8], idx: usize, value: u32) {
    buf[4 * idx..4 * idx + 4].copy_from_slice(&value.to_le_bytes());
}

/// The `idx`-th u16 of `buf`.
pub(super) fn get_u16(buf: &[u8], idx: usize) -> u16 {
    u16::from_le_bytes([buf[2 * idx], buf[2 * idx + 1]])
}

/// Sets the `idx`-th u16 of `buf`.
pub(super) fn set_u16(buf: &mut [u8], idx: usize, value: u16) {
    buf[2 * idx..2 * idx + 2].copy_from_slice(&value.to_le_bytes());
}
