/// The pages of the KV storage, with a count of holders each.
///
/// A holder is a sequence that lists the page or the prefix tree. A page without holders is free. Freed pages are
/// handed out last in, first out: they are the likeliest to be in a cache of the device.
#[derive(Debug)]
pub struct PagePool {
    holders: Vec<u32>,
    free: Vec<u32>,
}

impl PagePool {
    /// `num_pages` free pages.
    pub fn new(num_pages: usize) -> Self {
        Self { holders: vec![0; num_pages], free: (0..num_pages as u32).rev().collect() }
    }

    /// Pages, held or free.
    pub fn num_pages(&self) -> usize {
        self.holders.len()
    }

    /// Pages without a holder.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Holders of `page`.
    pub fn num_holders(&self, page: u32) -> u32 {
        self.holders[page as usize]
    }

    /// A free page, now with one holder; `None` when all are held.
    pub fn alloc(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.holders[page as usize] = 1;
        Some(page)
    }

    /// Adds a holder to a held page.
    ///
    /// # Panics
    /// If the page is free.
    pub fn hold(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(*holders > 0, "page {page} is free and cannot be shared");
        *holders += 1;
    }

    /// Takes a holder away; the last one frees the page.
    ///
    /// # Panics
    /// If the page is free.
    pub fn release(&mut self, page: u32) {
        let holders = &mut self.holders[page as usize];
        assert!(*holders > 0, "page {page} is freed twice");
        *holders -= 1;
        if *holders == 0 {
            self.free.push(page);
        }
    }

    /// Checks that the free list is exactly the pages without a holder, and the counts are `expected`.
    ///
    /// # Panics
    /// With what is wrong.
    pub fn check_invariants(&self, expected: &[u32]) {
        for (page, (&found, &expected)) in self.holders.iter().zip(expected).enumerate() {
            assert_eq!(found, expected, "page {page}: counted holders (left), found holders (right)");
        }
        let mut listed = vec![false; self.holders.len()];
        for &page in &self.free {
            assert_eq!(self.holders[page as usize], 0, "page {page} is in the free list and held");
            assert!(!std::mem::replace(&mut listed[page as usize], true), "page {page} is free twice");
        }
        let num_unheld = self.holders.iter().filter(|&&holders| holders == 0).count();
        assert_eq!(self.free.len(), num_unheld, "free list (left) misses pages without a holder (right)");
    }
}
