//! How many requests a lane may have in flight: it starts low, grows with each success and halves on a time-out
//! (additive increase, multiplicative decrease: Chiu and Jain, 1989).

/// Requests in flight before anything is known of an endpoint.
const START: f64 = 4.0;

/// A lane's limit of requests in flight.
#[derive(Debug)]
pub(super) struct Window {
    limit: f64,
}

impl Window {
    pub(super) fn new() -> Window {
        Window { limit: START }
    }

    /// The limit now, within 1..=`max`.
    pub(super) fn limit(&self, max: usize) -> usize {
        (self.limit as usize).clamp(1, max.max(1))
    }

    pub(super) fn grow(&mut self, max: usize) {
        self.limit = (self.limit + 1.0).min(max.max(1) as f64);
    }

    pub(super) fn halve(&mut self) {
        self.limit = (self.limit / 2.0).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_by_one_and_halves() {
        let mut window = Window::new();
        for _ in 0..100 {
            window.grow(16);
        }
        assert_eq!(window.limit(16), 16);
        assert_eq!(window.limit(3), 3, "a lowered bound holds at once");
        window.halve();
        assert_eq!(window.limit(16), 8);
        for _ in 0..10 {
            window.halve();
        }
        assert_eq!(window.limit(16), 1, "never less than one");
    }
}
