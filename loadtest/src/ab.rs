//! Is B faster than A? Statistics of paired rounds.

use serde::Serialize;

/// Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom.
const T95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// B / A over several rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Geometric mean, because half as much and twice as much should cancel out.
    pub mean: f64,
    /// Its 95 % interval.
    pub low: f64,
    pub high: f64,
}

/// What a ratio of costs says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Faster,
    Slower,
    WithinNoise,
}

impl Ratio {
    /// From B / A of each round; none of fewer than two.
    pub fn of(ratios: &[f64]) -> Option<Ratio> {
        let n = ratios.len();
        let t = T95.get(n.checked_sub(2)?).copied().unwrap_or(1.960);
        let logs: Vec<f64> = ratios.iter().map(|ratio| ratio.ln()).collect();
        let mean = logs.iter().sum::<f64>() / n as f64;
        let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
        let half = t * (variance / n as f64).sqrt();
        Some(Ratio { mean: mean.exp(), low: (mean - half).exp(), high: (mean + half).exp() })
    }

    /// Half of the interval's width, as a part of the mean.
    pub fn half_width(self) -> f64 {
        (self.high - self.low) / 2.0 / self.mean
    }

    /// For a cost: more is slower. `same` is the ratio of a commit to itself: what lies within its interval, or nearer to 1
    /// than it was, is noise whatever its own interval says.
    pub fn verdict(self, same: Ratio) -> Verdict {
        let noise = [same.low, same.high, same.mean].iter().map(|ratio| ratio.ln().abs()).fold(0.0, f64::max);
        let told = self.low > 1.0 || self.high < 1.0;
        match self.mean.ln() {
            effect if !told || effect.abs() <= noise => Verdict::WithinNoise,
            effect if effect > 0.0 => Verdict::Slower,
            _ => Verdict::Faster,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_and_twice_cancel_out() {
        let ratio = Ratio::of(&[0.5, 2.0, 1.0]).unwrap();
        assert!((ratio.mean - 1.0).abs() < 1e-12 && ratio.low < 0.3 && ratio.high > 3.0);
        assert_eq!(Ratio::of(&[1.0]), None);
        let exact = Ratio::of(&[1.1; 8]).unwrap();
        assert!((exact.mean - 1.1).abs() < 1e-12 && exact.half_width() < 1e-9);
    }

    #[test]
    fn the_interval_is_students() {
        // Logs 0, 0.1, 0.2, 0.3: mean 0.15, standard error 0.0645, t of 3 degrees 3.182.
        let ratio = Ratio::of(&[0.0f64, 0.1, 0.2, 0.3].map(f64::exp)).unwrap();
        assert!((ratio.low.ln() - (0.15 - 3.182 * 0.064_549_7)).abs() < 1e-5, "{ratio:?}");
    }

    #[test]
    fn a_difference_must_show_above_the_noise_of_a_commit_with_itself() {
        let same = Ratio { mean: 1.01, low: 0.98, high: 1.04 };
        let ratio = |mean: f64| Ratio { mean, low: mean - 0.01, high: mean + 0.01 };
        assert_eq!(ratio(1.10).verdict(same), Verdict::Slower);
        assert_eq!(ratio(0.90).verdict(same), Verdict::Faster);
        assert_eq!(ratio(1.03).verdict(same), Verdict::WithinNoise);
        assert_eq!(Ratio { mean: 1.10, low: 0.99, high: 1.22 }.verdict(same), Verdict::WithinNoise);
    }
}
