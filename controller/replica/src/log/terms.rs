//! The terms of all entries, kept in memory: terms only rise, so a few runs describe any log.

#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// Index and term of the entry just before the log.
    compacted: (u64, u64),
    /// (first index, term) of each run, rising in both.
    runs: Vec<(u64, u64)>,
    last: u64,
}

impl Terms {
    pub(super) fn after(index: u64, term: u64) -> Self {
        Self {
            compacted: (index, term),
            runs: Vec::new(),
            last: index,
        }
    }

    pub(super) fn last_index(&self) -> u64 {
        self.last
    }

    pub(super) fn get(&self, index: u64) -> Option<u64> {
        if index == self.compacted.0 {
            return Some(self.compacted.1);
        }
        if index < self.compacted.0 || index > self.last {
            return None;
        }
        let run = self
            .runs
            .partition_point(|(first, _)| *first <= index)
            .checked_sub(1)?;
        Some(self.runs[run].1)
    }

    /// The entry at `index` now has this term, and nothing follows it.
    pub(super) fn put(&mut self, index: u64, term: u64) {
        while self.runs.last().is_some_and(|(first, _)| *first >= index) {
            self.runs.pop();
        }
        if self.runs.last().is_none_or(|(_, last)| *last != term) {
            self.runs.push((index, term));
        }
        self.last = index;
    }

    /// Forgets entries up to `index`, which is in the log.
    pub(super) fn compact(&mut self, index: u64) {
        let Some(term) = self.get(index) else { return };
        self.compacted = (index, term);
        let gone = self.runs.partition_point(|(first, _)| *first <= index + 1);
        self.runs.drain(..gone.saturating_sub(1));
        if let Some((first, _)) = self.runs.first_mut() {
            *first = (*first).max(index + 1);
        }
        if index == self.last {
            self.runs.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_a_plain_list() {
        let mut terms = Terms::after(10, 1);
        let mut plain: Vec<(u64, u64)> = vec![(10, 1)];
        let check = |terms: &Terms, plain: &[(u64, u64)]| {
            for index in 0..40 {
                let expected = plain
                    .iter()
                    .find(|(at, _)| *at == index)
                    .map(|(_, term)| *term);
                assert_eq!(
                    terms.get(index),
                    expected,
                    "index {index} of {plain:?} in {terms:?}"
                );
            }
            assert_eq!(terms.last_index(), plain.last().map_or(0, |(at, _)| *at));
        };
        let put = |terms: &mut Terms, plain: &mut Vec<(u64, u64)>, index, term| {
            plain.retain(|(at, _)| *at < index);
            plain.push((index, term));
            terms.put(index, term);
        };
        for (index, term) in [
            (11, 1),
            (12, 2),
            (13, 2),
            (14, 4),
            (15, 4),
            (13, 5),
            (14, 5),
            (15, 7),
        ] {
            put(&mut terms, &mut plain, index, term);
            check(&terms, &plain);
        }
        for index in [12, 13, 15] {
            terms.compact(index);
            plain.retain(|(at, _)| *at >= index);
            check(&terms, &plain);
        }
        put(&mut terms, &mut plain, 16, 7);
        check(&terms, &plain);
    }
}
