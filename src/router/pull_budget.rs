//! What all mirrors of a member may hold together: connections to other clusters, and bytes of answers.
//!
//! A pull needs a turn, which is one connection, and has it until what it brought is written. Who waits longest is
//! next, and while somebody waits, pulls that wait for news do so for less time: with more mirrors than turns each
//! comes about as often.
//!
//! A pull asks for little, which every turn has room for, unless more is known to be there: then it asks for much,
//! after few others have. If none of these ends in time it asks for little instead, so that no remote that is slow
//! keeps others from getting on. Answers may be longer than what was asked for, by a record or by names; that counts
//! as it comes, in a budget of all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::remote::RemoteError;
use crate::budget::{Budget, Charge};
use crate::limits::{
    LARGE_ANSWER_BYTES, LARGE_PULL_PATIENCE, MAX_GROWN_ANSWER_BYTES, MAX_LARGE_PULLS, MAX_PULL_ANSWER_BYTES,
    MAX_PULL_BYTES, MIN_SHARED_PULL_WAIT, SMALL_PULL_BYTES,
};

/// Shared by all mirrors of a member.
pub struct PullBudget {
    turns: Arc<Semaphore>,
    max_turns: usize,
    /// Mirrors that wait for a turn.
    waiting: AtomicUsize,
    large: Arc<Semaphore>,
    grown: Arc<Budget>,
}

/// One pull under way.
pub(super) struct PullTurn {
    budget: Arc<PullBudget>,
    _turn: Option<OwnedSemaphorePermit>,
}

/// Room for one answer.
pub struct AnswerRoom {
    budget: Arc<PullBudget>,
    large: Option<OwnedSemaphorePermit>,
    grown: Option<Charge>,
    is_short: bool,
}

/// Counts one that waits.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PullBudget {
    /// For so many connections at once.
    pub fn new(max_turns: usize) -> Arc<Self> {
        Arc::new(PullBudget {
            turns: Arc::new(Semaphore::new(max_turns)),
            max_turns,
            waiting: AtomicUsize::new(0),
            large: Arc::new(Semaphore::new(MAX_LARGE_PULLS)),
            grown: Budget::new(MAX_GROWN_ANSWER_BYTES),
        })
    }

    pub(super) fn max_turns(&self) -> usize {
        self.max_turns
    }

    /// Waits for a turn.
    pub(super) async fn turn(self: &Arc<Self>) -> PullTurn {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        // It is never closed.
        let turn = self.turns.clone().acquire_owned().await.ok();
        PullTurn { budget: self.clone(), _turn: turn }
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl PullTurn {
    /// How long a pull may wait for news that would wait for `wait` if nobody else wanted its turn.
    pub fn shorten(&self, wait: Duration) -> Duration {
        let (turns, waiting) = (self.budget.max_turns as u32, self.budget.waiting() as u32);
        match waiting {
            0 => wait,
            _ => (wait * turns / turns.saturating_add(waiting)).max(MIN_SHARED_PULL_WAIT).min(wait),
        }
    }

    /// Room for an answer; if `is_large`, for a large one, if there is some soon.
    pub async fn room(&self, is_large: bool) -> AnswerRoom {
        let mut large = None;
        if is_large {
            let acquiring = self.budget.large.clone().acquire_owned();
            large = tokio::time::timeout(LARGE_PULL_PATIENCE, acquiring).await.ok().and_then(Result::ok);
        }
        AnswerRoom { budget: self.budget.clone(), large, grown: None, is_short: false }
    }
}

impl AnswerRoom {
    pub(super) fn is_large(&self) -> bool {
        self.large.is_some()
    }

    /// What to ask for.
    pub(super) fn max_bytes(&self) -> usize {
        if self.is_large() { MAX_PULL_BYTES } else { SMALL_PULL_BYTES }
    }

    /// The length of an answer for which there is room in any case.
    pub(super) fn ready_bytes(&self) -> usize {
        if self.is_large() { LARGE_ANSWER_BYTES } else { SMALL_PULL_BYTES }
    }

    /// Whether an answer was refused that a large one would have had room for.
    pub(super) fn is_short(&self) -> bool {
        self.is_short
    }

    /// Whether others wait for the connection, mostly to other hosts: an idle one would be one too many.
    pub fn is_in_demand(&self) -> bool {
        self.budget.waiting() > 0
    }

    /// Makes room for an answer of `bytes` in all. Errors: it is longer than any may be, or others hold too much.
    pub fn hold(&mut self, bytes: usize) -> Result<(), RemoteError> {
        let refused = |message| RemoteError { code: "internal".into(), message, is_refusal: false };
        if bytes > MAX_PULL_ANSWER_BYTES {
            return Err(refused(format!("the answer is of more than {MAX_PULL_ANSWER_BYTES} bytes")));
        }
        let more = bytes.saturating_sub(self.ready_bytes());
        let has_room = match &mut self.grown {
            _ if more == 0 => true,
            Some(grown) => grown.resize(more),
            none => {
                *none = self.budget.grown.charge(more);
                none.is_some()
            }
        };
        if has_room {
            return Ok(());
        }
        self.is_short = !self.is_large();
        Err(refused("the answers to all mirrors are too much at once".into()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn with_more_mirrors_than_turns_each_comes_as_often() {
        const MIRRORS: usize = 300;
        let budget = PullBudget::new(16);
        let pulls: Arc<Vec<AtomicUsize>> = Arc::new((0..MIRRORS).map(|_| AtomicUsize::new(0)).collect());
        let most = Arc::new(AtomicUsize::new(0));
        let end = Instant::now() + Duration::from_secs(120);
        let mirrors: Vec<_> = (0..MIRRORS)
            .map(|number| {
                let (budget, pulls, most) = (budget.clone(), pulls.clone(), most.clone());
                tokio::spawn(async move {
                    while Instant::now() < end {
                        let turn = budget.turn().await;
                        most.fetch_max(16 - budget.turns.available_permits(), Ordering::Relaxed);
                        tokio::time::sleep(turn.shorten(Duration::from_secs(5))).await;
                        pulls[number].fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for mirror in mirrors {
            mirror.await.unwrap();
        }
        let pulls: Vec<usize> = pulls.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let (least, most_pulls) = (pulls.iter().min().unwrap(), pulls.iter().max().unwrap());
        assert!(*least >= 15 && most_pulls - least <= 2, "{least} to {most_pulls}");
        assert!(most.load(Ordering::Relaxed) <= 16);
        assert_eq!(budget.waiting(), 0);
        let alone = budget.turn().await;
        assert_eq!(alone.shorten(Duration::from_secs(5)), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn few_ask_for_much_at_once_and_all_others_get_on_meanwhile() {
        let budget = PullBudget::new(100);
        let turn = budget.turn().await;
        let mut held = Vec::new();
        for _ in 0..MAX_LARGE_PULLS {
            held.push(turn.room(true).await);
            assert_eq!(held.last().unwrap().max_bytes(), MAX_PULL_BYTES);
        }
        let begun = Instant::now();
        let mut small = turn.room(true).await;
        assert_eq!((small.max_bytes(), begun.elapsed() < 2 * LARGE_PULL_PATIENCE), (SMALL_PULL_BYTES, true));
        assert_eq!(small.hold(SMALL_PULL_BYTES), Ok(()));
        held.pop();
        assert!(turn.room(true).await.is_large());
    }

    #[tokio::test]
    async fn what_answers_are_longer_than_was_asked_for_has_a_bound_of_all() {
        let budget = PullBudget::new(100);
        let turn = budget.turn().await;
        let (mut held, mut bytes) = (Vec::new(), 0);
        loop {
            let mut room = turn.room(false).await;
            // As it comes.
            let grown = (1..=4).map(|part| room.hold(part << 20)).collect::<Result<Vec<()>, _>>();
            if grown.is_err() {
                assert!(room.is_short());
                break;
            }
            bytes += 4 << 20;
            held.push(room);
        }
        assert!(bytes <= MAX_GROWN_ANSWER_BYTES + held.len() * SMALL_PULL_BYTES, "{bytes}");
        let mut large = turn.room(true).await;
        assert_eq!(large.hold(LARGE_ANSWER_BYTES), Ok(()));
        assert!(large.hold(MAX_PULL_ANSWER_BYTES + 1).is_err() && !large.is_short());
        drop((held, large));
        assert_eq!(budget.grown.held_bytes(), 0);
        assert_eq!(turn.room(false).await.hold(MAX_PULL_ANSWER_BYTES), Ok(()));
    }
}
