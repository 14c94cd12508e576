//! What all mirrors of a member may hold together: connections to other clusters, bytes of answers, and names of topics
//! (`topics.rs`).
//!
//! A pull needs a turn, which is one connection, and has it until what it brought is written. Who waits longest is
//! next, and while somebody waits, pulls that wait for news do so for less time: with more mirrors than turns each
//! comes about as often. Those that failed or came slowly of late (`trouble.rs`) have half of the turns at most: a remote
//! that takes connections and says next to nothing keeps each for as long as a pull may last, however many mirrors it
//! has, and others get on. There is no share per host: names of hosts cost their owner nothing.
//!
//! A pull asks for little, which every turn has room for, unless more is known to be there: then it asks for as much
//! as its link brings in about a second (`pace.rs`), from what all may hold that do so. If there is not so much in time
//! it asks for little instead, and keeps its place in the queue meanwhile, so that no remote that is slow keeps
//! others from getting on. Answers may be longer than what was asked for, by a record or by names; that counts
//! as it comes, in a budget of all.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::remote::RemoteError;
use super::topics::Topics;
use crate::budget::{Budget, Charge};
use crate::limits::{
    LARGE_ANSWER_BYTES, LARGE_PULL_PATIENCE, MAX_GROWN_ANSWER_BYTES, MAX_LARGE_BYTES, MAX_PULL_ANSWER_BYTES,
    MAX_TOPICS_BYTES, MIN_SHARED_PULL_WAIT, MIN_TOPICS_BYTES, SMALL_PULL_BYTES, TURN_PATIENCE,
};

/// Shared by all mirrors of a member.
pub struct PullBudget {
    turns: Arc<Semaphore>,
    max_turns: usize,
    /// Mirrors that wait for a turn.
    waiting: AtomicUsize,
    /// Turns of mirrors that are in trouble, and how many of those wait for one.
    trials: Arc<Semaphore>,
    waiting_trials: AtomicUsize,
    /// In parts of [`SMALL_PULL_BYTES`].
    large: Arc<Semaphore>,
    grown: Arc<Budget>,
    /// What mirrors remember of topics, beyond what each may in any case.
    topics: Arc<Budget>,
    min_topics_bytes: usize,
}

/// One pull under way.
pub(super) struct PullTurn {
    budget: Arc<PullBudget>,
    _turn: Option<OwnedSemaphorePermit>,
    _trial: Option<OwnedSemaphorePermit>,
}

/// The place of a mirror among those that wait for room for a large answer.
#[derive(Default)]
pub(super) struct LargePlace(Option<(u32, Acquiring)>);

type Acquiring = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send + Sync>>;

impl LargePlace {
    /// Others are next.
    pub fn leave(&mut self) {
        self.0 = None;
    }
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

impl<'a> Waiting<'a> {
    fn count(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Waiting(counter)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PullBudget {
    /// For so many connections at once.
    pub fn new(max_turns: usize) -> Arc<Self> {
        Self::with_topics_bytes(max_turns, (MAX_TOPICS_BYTES, MIN_TOPICS_BYTES))
    }

    /// With so many bytes for what all mirrors together, and each of them in any case, remember of topics.
    pub fn with_topics_bytes(max_turns: usize, (in_all, each): (usize, usize)) -> Arc<Self> {
        Arc::new(PullBudget {
            turns: Arc::new(Semaphore::new(max_turns)),
            max_turns,
            waiting: AtomicUsize::new(0),
            trials: Arc::new(Semaphore::new((max_turns / 2).max(1))),
            waiting_trials: AtomicUsize::new(0),
            large: Arc::new(Semaphore::new(MAX_LARGE_BYTES / SMALL_PULL_BYTES)),
            grown: Budget::new(MAX_GROWN_ANSWER_BYTES),
            topics: Budget::new(in_all),
            min_topics_bytes: each,
        })
    }

    /// For what one more mirror remembers of topics.
    pub(super) fn topics(&self) -> Topics {
        Topics::new(self.topics.clone(), self.min_topics_bytes)
    }

    pub(super) fn max_turns(&self) -> usize {
        self.max_turns
    }

    /// Waits for a turn of a mirror that is in trouble, or is not; calls `tell` if that takes long.
    pub(super) async fn next_turn(self: Arc<Self>, is_in_trouble: bool, tell: impl FnOnce()) -> PullTurn {
        let mut turn = pin!(self.turn(is_in_trouble));
        match tokio::time::timeout(TURN_PATIENCE, turn.as_mut()).await {
            Ok(turn) => turn,
            Err(_) => {
                tell();
                turn.await
            }
        }
    }

    pub(super) async fn turn(self: &Arc<Self>, is_in_trouble: bool) -> PullTurn {
        // None of these is ever closed.
        let mut trial = None;
        if is_in_trouble {
            let _waiting = Waiting::count(&self.waiting_trials);
            trial = self.trials.clone().acquire_owned().await.ok();
        }
        let _waiting = Waiting::count(&self.waiting);
        let turn = self.turns.clone().acquire_owned().await.ok();
        PullTurn { budget: self.clone(), _turn: turn, _trial: trial }
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

    /// Whether other mirrors wait for a turn.
    pub(super) fn is_in_demand(&self) -> bool {
        self.budget.waiting() > 0
    }

    /// Room for an answer that is small.
    pub fn small_room(&self) -> AnswerRoom {
        AnswerRoom { budget: self.budget.clone(), large: None, grown: None, is_short: false }
    }

    /// Room for an answer of `bytes`, if there is so much soon; otherwise `place` is kept, and the room is a small one.
    pub(super) async fn large_room(&self, bytes: usize, place: &mut LargePlace) -> AnswerRoom {
        let parts = bytes.min(LARGE_ANSWER_BYTES).div_ceil(SMALL_PULL_BYTES) as u32;
        if place.0.as_ref().is_some_and(|(waits_for, _)| *waits_for < parts) {
            place.leave();
        }
        let large = self.budget.large.clone();
        let (_, acquiring) = place.0.get_or_insert_with(|| {
            let acquiring: Acquiring = Box::pin(async move { large.acquire_many_owned(parts).await.ok() });
            (parts, acquiring)
        });
        let acquired = tokio::time::timeout(LARGE_PULL_PATIENCE, acquiring.as_mut()).await;
        if acquired.is_ok() {
            place.leave();
        }
        let large = acquired.ok().flatten();
        AnswerRoom { budget: self.budget.clone(), large, grown: None, is_short: false }
    }
}

impl AnswerRoom {
    pub(super) fn is_large(&self) -> bool {
        self.large.is_some()
    }

    /// The length of an answer for which there is room in any case.
    pub(super) fn ready_bytes(&self) -> usize {
        self.large.as_ref().map_or(1, |large| large.num_permits()) * SMALL_PULL_BYTES
    }

    /// Whether an answer was refused that a large one would have had room for.
    pub(super) fn is_short(&self) -> bool {
        self.is_short
    }

    /// Whether others wait for the connection, mostly to other hosts: an idle one would be one too many.
    pub fn is_in_demand(&self) -> bool {
        self.budget.waiting() > 0 || self.budget.waiting_trials.load(Ordering::Relaxed) > 0
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
    use crate::router::pace::Pace;
    use crate::router::trouble::Trouble;

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
                        let turn = budget.turn(false).await;
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
        let alone = budget.turn(false).await;
        assert_eq!(alone.shorten(Duration::from_secs(5)), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn mirrors_that_fail_or_trickle_leave_turns_to_the_others() {
        const PULL_TIMEOUT: Duration = Duration::from_secs(10);
        let budget = PullBudget::new(16);
        let failing: Vec<_> = (0..300)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move {
                    let mut trouble = Trouble::default();
                    loop {
                        let _turn = budget.turn(trouble.is_on()).await;
                        if trouble.is_on() {
                            // Well by way of change.
                            tokio::time::sleep(Duration::from_secs(1)).await;
                            continue;
                        }
                        tokio::time::sleep(PULL_TIMEOUT).await;
                        trouble.begin();
                    }
                })
            })
            .collect();
        // Each of them is tried as any other, and more seldom then.
        tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
        let (mut waited, begun) = (Duration::ZERO, Instant::now());
        while begun.elapsed() < Duration::from_secs(3600) {
            let begun = Instant::now();
            let turn = budget.turn(false).await;
            waited += begun.elapsed();
            drop(turn);
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
        assert!(waited < Duration::from_secs(3600 / 20), "{waited:?}");
        failing.iter().for_each(|mirror| mirror.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_long_for_a_turn_is_told() {
        // C-MIRROR-11
        let budget = PullBudget::new(1);
        let turn = budget.turn(false).await;
        assert_eq!(turn.shorten(Duration::from_secs(5)), Duration::from_secs(5), "nobody wants it");
        let (tell, told) = tokio::sync::oneshot::channel();
        let begun = Instant::now();
        let waiting = tokio::spawn(budget.clone().next_turn(false, move || tell.send(()).unwrap()));
        told.await.unwrap();
        assert_eq!(begun.elapsed(), TURN_PATIENCE);
        assert!(turn.small_room().is_in_demand(), "an idle connection would be one too many");
        drop(turn);
        drop(waiting.await.unwrap());
        drop(budget.clone().next_turn(true, || panic!("there is one")).await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_for_much_gets_on_and_is_next() {
        let budget = PullBudget::new(100);
        let turn = budget.turn(false).await;
        let mut place = LargePlace::default();
        let mut held = Vec::new();
        for _ in 0..MAX_LARGE_BYTES / LARGE_ANSWER_BYTES {
            held.push(turn.large_room(LARGE_ANSWER_BYTES, &mut place).await);
            assert_eq!(held.last().unwrap().ready_bytes(), LARGE_ANSWER_BYTES);
        }
        let begun = Instant::now();
        let mut small = turn.large_room(LARGE_ANSWER_BYTES, &mut place).await;
        assert!(!small.is_large() && begun.elapsed() < 2 * LARGE_PULL_PATIENCE);
        assert_eq!(small.hold(SMALL_PULL_BYTES), Ok(()));
        held.pop();
        // Whoever comes later waits behind it.
        assert!(!turn.large_room(1 << 20, &mut LargePlace::default()).await.is_large());
        assert!(turn.large_room(LARGE_ANSWER_BYTES, &mut place).await.is_large());
        drop(held);
        place.leave();
        assert_eq!(budget.large.available_permits(), MAX_LARGE_BYTES / SMALL_PULL_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_links_with_much_to_bring_leave_a_fast_one_its_speed() {
        const SLOW: f64 = 131_072.0;
        const FAST: f64 = 104_857_600.0;
        let budget = PullBudget::new(100);
        // Always with more, for so long at so many bytes a second; gives the bytes.
        async fn mirror(budget: Arc<PullBudget>, seconds: u64, rate: f64) -> usize {
            let (end, mut bytes) = (Instant::now() + Duration::from_secs(seconds), 0);
            let (mut pace, mut place) = (Pace::default(), LargePlace::default());
            while Instant::now() < end {
                let turn = budget.turn(false).await;
                let room = turn.large_room(pace.bytes() + pace.bytes() / 4, &mut place).await;
                let asked = if room.is_large() { pace.bytes() } else { SMALL_PULL_BYTES };
                let took = Duration::from_secs_f64(0.005 + asked as f64 / rate);
                tokio::time::sleep(took).await;
                pace.note(asked, asked, took);
                bytes += asked;
            }
            bytes
        }
        let slow: Vec<_> = (0..30).map(|_| tokio::spawn(mirror(budget.clone(), 90, SLOW))).collect();
        tokio::time::sleep(Duration::from_secs(20)).await;
        let bytes = mirror(budget.clone(), 60, FAST).await;
        assert!(bytes as f64 > 0.5 * 60.0 * FAST, "{bytes}");
        for mirror in slow {
            assert!(mirror.await.unwrap() as f64 > 0.8 * 90.0 * SLOW);
        }
    }

    #[tokio::test]
    async fn what_answers_are_longer_than_was_asked_for_has_a_bound_of_all() {
        let budget = PullBudget::new(100);
        let turn = budget.turn(false).await;
        let (mut held, mut bytes) = (Vec::new(), 0);
        loop {
            let mut room = turn.small_room();
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
        let mut large = turn.large_room(LARGE_ANSWER_BYTES, &mut LargePlace::default()).await;
        assert_eq!(large.hold(LARGE_ANSWER_BYTES), Ok(()));
        assert!(large.hold(MAX_PULL_ANSWER_BYTES + 1).is_err() && !large.is_short());
        drop((held, large));
        assert_eq!(budget.grown.held_bytes(), 0);
        assert_eq!(turn.small_room().hold(MAX_PULL_ANSWER_BYTES), Ok(()));
    }
}
