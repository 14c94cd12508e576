//! Whether a mirror has failed or come slowly of late: then it takes its turns from a part of all.
//!
//! One good pull does not end that, or a remote could let its mirrors take every other turn for as long as a pull may
//! last. Each time that one is in trouble anew it is for twice as long, so that most of its pulls are among its like.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{MIN_ANSWER_BYTES_PER_S, SLOW_ANSWER_AFTER, TROUBLE_SPANS};

#[derive(Default)]
pub(super) struct Trouble {
    until: Option<Instant>,
    span: Duration,
}

impl Trouble {
    pub fn is_on(&self) -> bool {
        self.until.is_some_and(|until| until > Instant::now())
    }

    /// The last pull failed, or was slow.
    pub fn begin(&mut self) {
        let (shortest, longest) = TROUBLE_SPANS;
        if !self.is_on() {
            let is_anew = self.until.is_some_and(|until| until.elapsed() < longest);
            self.span = if is_anew { (self.span * 2).min(longest) } else { shortest };
        }
        self.until = Some(Instant::now() + self.span);
    }
}

/// Whether an answer of `bytes` came so slowly that its connection was not worth it; `took` is without what the pull was
/// to wait for something to say.
pub(super) fn is_slow(bytes: usize, took: Duration) -> bool {
    took > SLOW_ANSWER_AFTER + Duration::from_secs((bytes / MIN_ANSWER_BYTES_PER_S) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_in_trouble_again_is_so_for_longer() {
        // C-MIRROR-11
        let (shortest, longest) = TROUBLE_SPANS;
        let mut trouble = Trouble::default();
        let (mut seconds_held, begun) = (0, Instant::now());
        assert!(!trouble.is_on());
        // Whenever it is out of it, it holds a turn for a minute.
        while begun.elapsed() < 24 * longest {
            if !trouble.is_on() {
                tokio::time::advance(Duration::from_secs(60)).await;
                seconds_held += 60;
                trouble.begin();
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(seconds_held < 24 * 120, "{seconds_held}");
        // Many failures in a row are one trouble, and what was long ago counts no more.
        tokio::time::advance(3 * longest).await;
        (0..20).for_each(|_| trouble.begin());
        tokio::time::advance(shortest - Duration::from_secs(1)).await;
        assert!(trouble.is_on());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!trouble.is_on());
    }

    #[test]
    fn an_answer_is_slow_for_its_bytes() {
        let seconds = Duration::from_secs;
        assert!(!is_slow(0, SLOW_ANSWER_AFTER) && is_slow(0, SLOW_ANSWER_AFTER + seconds(1)));
        let slow_link = (8 << 20, seconds((8 << 20) / MIN_ANSWER_BYTES_PER_S as u64));
        assert!(!is_slow(slow_link.0, slow_link.1) && is_slow(slow_link.0, 2 * slow_link.1));
    }
}
