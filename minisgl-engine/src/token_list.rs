/// Tokens that lie in the list itself: with its counts they fill a cache line.
const NUM_RECENT: usize = 14;

/// The tokens of a sequence, of which the newest few lie in the list itself.
///
/// Appending to an array of its own at every step would touch one more page of memory for each of thousands of
/// sequences, and cost more than all else that a step does with them.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct TokenList {
    num_settled: u32,
    num_recent: u32,
    recent: [u32; NUM_RECENT],
    /// All but the recent ones.
    settled: Vec<u32>,
}

impl TokenList {
    pub(crate) fn new(tokens: Vec<u32>) -> Self {
        Self { num_settled: tokens.len() as u32, num_recent: 0, recent: [0; NUM_RECENT], settled: tokens }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.num_settled as usize + self.num_recent as usize
    }

    #[inline]
    pub(crate) fn get(&self, position: usize) -> Option<u32> {
        match position.checked_sub(self.num_settled as usize) {
            Some(at) => self.recent[..self.num_recent as usize].get(at).copied(),
            None => Some(self.settled[position]),
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, token: u32) {
        if self.num_recent as usize == NUM_RECENT {
            self.settle();
        }
        self.recent[self.num_recent as usize] = token;
        self.num_recent += 1;
    }

    /// All tokens, side by side.
    pub(crate) fn as_slice(&mut self) -> &[u32] {
        self.settle();
        &self.settled
    }

    pub(crate) fn truncate(&mut self, len: usize) {
        self.settle();
        self.settled.truncate(len);
        self.num_settled = self.settled.len() as u32;
    }

    /// Makes room for `len` tokens in all.
    pub(crate) fn reserve(&mut self, len: usize) {
        self.settled.reserve(len.saturating_sub(self.settled.len()));
    }

    fn settle(&mut self) {
        self.settled.extend_from_slice(&self.recent[..self.num_recent as usize]);
        self.num_settled += self.num_recent;
        self.num_recent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_a_vector_wherever_tokens_lie() {
        for num_prompt in [1, 13, 14, 15, 40] {
            let mut expected: Vec<u32> = (0..num_prompt).collect();
            let mut list = TokenList::new(expected.clone());
            for token in 100..150 {
                list.push(token);
                expected.push(token);
                assert_eq!(list.len(), expected.len());
                for position in 0..=expected.len() {
                    assert_eq!(list.get(position), expected.get(position).copied());
                }
                if token % 17 == 0 {
                    assert_eq!(list.as_slice(), expected);
                }
                if token == 130 {
                    list.truncate(20);
                    expected.truncate(20);
                }
            }
            list.reserve(1000);
            assert_eq!(list.as_slice(), expected);
        }
    }
}
