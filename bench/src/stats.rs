//! Medians with an interval, and ratios pair by pair.

/// The median and a 95% interval for it, from order statistics: no assumption about the shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Median {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Median {
    pub(crate) fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = interval(sorted.len());
        Self {
            value: quantile(&sorted, 0.5),
            low: sorted[low],
            high: sorted[high],
        }
    }
}

impl std::fmt::Display for Median {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.value < 10.0 { 2 } else { 0 };
        write!(
            f,
            "{:.digits$} [{:.digits$}–{:.digits$}]",
            self.value, self.low, self.high
        )
    }
}

/// A quantile of sorted samples, by the nearest rank.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 <= rank < len"
)]
pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    if q == 0.5 && sorted.len().is_multiple_of(2) {
        let middle = sorted.len() / 2;
        return f64::midpoint(sorted[middle - 1], sorted[middle]);
    }
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Indices of the order statistics that hold the median with a probability of at least 95%.
fn interval(n: usize) -> (usize, usize) {
    // P(Binomial(n, 1/2) <= k), largest k with at most 2.5% in the tail.
    let mut term = 0.5_f64.powi(i32::try_from(n).unwrap_or(i32::MAX));
    let mut tail = term;
    let mut low = 0;
    while tail <= 0.025 && low < n / 2 {
        low += 1;
        term *= (n - low + 1) as f64 / low as f64;
        tail += term;
    }
    let low = low.saturating_sub(1);
    (low, n - 1 - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_samples_give_the_second_and_the_ninth() {
        let samples: Vec<f64> = (1..=10).map(f64::from).collect();
        assert_eq!(
            Median::of(&samples),
            Median {
                value: 5.5,
                low: 2.0,
                high: 9.0
            }
        );
        assert_eq!(quantile(&samples, 0.99), 10.0);
        assert_eq!(quantile(&samples, 0.1), 1.0);
    }
}
