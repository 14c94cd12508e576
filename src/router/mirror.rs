//! One mirror: pulls from a member of another cluster, and has written here what is new.
//!
//! One pull is one long poll; what it brings is one command, which carries the copies and the positions reached. What
//! another way has brought already is left out of the command, and looked at again when that is applied. Failures are
//! told, and tried again for ever.
//!
//! A mirror of many topics lists them once, in pages, and is told from then on which of them change
//! (`engine/pull_news.rs`): a pull names only those in which there is something new (`agenda.rs`), and while there
//! are none, those that were active last. What is remembered of single topics is in `topics.rs`.

mod asking;
mod pulling;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::answer::{Answered, AnsweredTopic, PullAnswer};
use super::backoff::Backoff;
use super::pace::Pace;
use super::page::dest_of;
use super::pull_budget::LargePlace;
use super::remote::RemoteError;
use super::status::{self, Told};
use super::topics::Topics;
use super::trouble::{Trouble, is_slow};
use super::view::View;
use super::why::Why;
use crate::engine::{Ask, ChangeCursor, LinkState, News, PullCursor};
use crate::limits::{
    LARGE_ANSWER_BYTES, MAX_RETRY_PULL_BYTES, MIRROR_IDLE_PAUSE_MS, MIRROR_LIST_PAUSE_MS, MIRROR_PAUSE_MS,
    PULL_WAIT_MS, RETRY_LOOK_INTERVAL, SMALL_PULL_BYTES,
};
use crate::state::{Cluster, Position, Refusal, RouterConfig, SharedRouter};
use asking::WantedBytes;

/// Added to the time that a pull may wait, for the answer to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A pull that ends so much before its time has waited for it.
const WAIT_ACCURACY: Duration = Duration::from_millis(10);

/// How often it is looked whether what was asked for is still for the same topics here.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Topics of which it is found out under one look at the router whether they have something new.
const TOPICS_PER_LOOK: usize = 1024;

/// An answer of so few bytes is checked on the spot, within about a tenth of a millisecond.
const QUICK_ANSWER_BYTES: usize = 32 << 10;

/// The positions from which a pull goes on, by source topic.
type Asked = BTreeMap<String, Position>;

/// Why a mirror cannot go on at once.
struct Halt {
    state: LinkState,
    told: Told,
}

impl Halt {
    fn blocked(code: &str, message: String) -> Self {
        Halt { state: LinkState::Blocked, told: Told::new(code, message) }
    }

    fn retrying(code: &str, message: String) -> Self {
        Halt { state: LinkState::Retrying, told: Told::new(code, message) }
    }
}

impl From<RemoteError> for Halt {
    fn from(error: RemoteError) -> Self {
        let state = if error.is_refusal { LinkState::Blocked } else { LinkState::Retrying };
        Halt { state, told: Told::new(error.code, error.message) }
    }
}

/// What a topic had to say.
enum Said {
    /// It is gone, or cannot be gone on with now.
    Nothing,
    All,
    /// There is more behind it.
    More,
}

/// What came of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brought {
    /// Some topic has come on, or it has waited for as long as it was to.
    Something,
    /// Names of topics to ask for.
    Names,
    /// The next one would bring as little at once.
    Nothing,
}

struct Mirror {
    context: Context,
    router: Arc<SharedRouter>,
    config: Arc<RouterConfig>,
    own: Cluster,
    /// Which of the URLs is asked.
    next_url: usize,
    /// Which topics to ask for, and how they do.
    topics: Topics,
    /// How far topics were examined beyond the positions that are stored, by source topic: there was nothing to
    /// copy, so there was nothing to write. In a mirror both ways all that comes back is such. Each with the
    /// instance here that needed nothing.
    ahead: BTreeMap<Arc<str>, (u64, PullCursor)>,
    /// The last pull was of topics that were left alone and are tried again.
    was_retry: bool,
    /// Of a mirror of many topics: what is known of all of them, and up to where it is known which went away here.
    view: View,
    /// All topics are not listed again before this time, and what that is the next time.
    list_from: Option<Instant>,
    list_pauses: Backoff,
    known_here: ChangeCursor,
    wanted_bytes: WantedBytes,
    /// The last pull failed: the next one waits for nothing, so that it is told at once if the link is well again.
    has_failed: bool,
    trouble: Trouble,
    /// There is more than the last answer had room for, or it had not even that.
    has_more: bool,
    was_short: bool,
    /// How much of it comes in a while, and the place among those that wait for room for it.
    pace: Pace,
    large_place: LargePlace,
}

/// Runs one mirror while this member leads; `changes` tells when it is configured anew. Returns when there is no such
/// router any more.
pub(super) async fn run(context: Context, router: Arc<SharedRouter>, mut changes: watch::Receiver<u64>) {
    let (mut backoff, mut idle) = (Backoff::new(MIRROR_PAUSE_MS), Backoff::new(MIRROR_IDLE_PAUSE_MS));
    let Some(mut mirror) = Mirror::new(context.clone(), router.clone()).await else { return };
    while !router.is_deleted() {
        changes.borrow_and_update();
        let is_paused = {
            let router = router.read();
            mirror.take_config(&router.config);
            router.is_paused
        };
        if is_paused {
            mirror.large_place.leave();
            status::set(&context, router.generation, LinkState::Paused, mirror.topics.lag(), None);
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let config = mirror.config.clone();
        // A pull may wait for long; what is configured anew counts at once.
        let pulled = tokio::select! {
            biased;
            () = changed(&mut changes, &router, &config) => continue,
            pulled = mirror.step() => pulled,
        };
        mirror.has_failed = pulled.is_err();
        let pause = match pulled {
            Ok(brought) => {
                backoff.reset();
                mirror.tell_progress();
                match brought {
                    Brought::Something => {
                        idle.reset();
                        continue;
                    }
                    Brought::Names => continue,
                    Brought::Nothing => idle.pause(&*context.random),
                }
            }
            Err(halt) => {
                mirror.next_url += 1;
                mirror.trouble.begin();
                mirror.pace = Pace::default();
                let lag = mirror.topics.lag();
                status::set(&context, router.generation, halt.state, lag, Some(halt.told));
                backoff.pause(&*context.random)
            }
        };
        // Meanwhile others are next.
        mirror.large_place.leave();
        tokio::select! {
            biased;
            () = changed(&mut changes, &router, &config) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Returns when `router` is paused, is gone, or is not configured as `config` says any more.
async fn changed(changes: &mut watch::Receiver<u64>, router: &SharedRouter, config: &Arc<RouterConfig>) {
    loop {
        // Without a sender this member is ending, and this task with it.
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let now = router.read();
        if now.is_paused || router.is_deleted() || !Arc::ptr_eq(&now.config, config) {
            return;
        }
    }
}

impl Mirror {
    async fn new(context: Context, router: Arc<SharedRouter>) -> Option<Self> {
        // The router could not have been made before this was known.
        let own = context.engine.own_cluster()?;
        let (config, topics) = (router.read().config.clone(), context.pulls.topics());
        Some(Mirror {
            known_here: context.engine.follow_changes(),
            context,
            router,
            config,
            own,
            next_url: 0,
            topics,
            ahead: BTreeMap::new(),
            was_retry: false,
            view: View::default(),
            list_from: None,
            list_pauses: Backoff::new(MIRROR_LIST_PAUSE_MS),
            wanted_bytes: WantedBytes::default(),
            has_failed: false,
            trouble: Trouble::default(),
            has_more: false,
            was_short: false,
            pace: Pace::default(),
            large_place: LargePlace::default(),
        })
    }

    fn take_config(&mut self, config: &Arc<RouterConfig>) {
        if !Arc::ptr_eq(&self.config, config) {
            self.config = config.clone();
            self.topics.try_all();
            // It may have to look again at what was examined.
            self.ahead.clear();
            self.view = View::default();
            self.list_from = None;
        }
    }

    /// Lists all topics again, but not on and on.
    fn list_again(&mut self) {
        self.view = View::default();
        self.list_from = Some(Instant::now() + self.list_pauses.pause(&*self.context.random));
        self.topics.begin_list();
    }

    fn tell_progress(&self) {
        // One of a topic is told, though others may have another.
        let worst = self.topics.worst();
        let worst = worst.map(|(source, why)| (why.state(), why.told(source, dest_of(&self.config, source))));
        let mut worst = worst.or_else(|| self.held_back());
        if self.topics.has_dropped() {
            let message =
                "so many topics are left alone that no others are taken up before some of them go on";
            match &mut worst {
                Some((_, told)) => told.message = format!("{}; {message}", told.message),
                None => worst = Some((LinkState::Retrying, Told::new("throttled", message))),
            }
        }
        let (state, told) = match worst {
            Some((state, told)) => (state, Some(told)),
            None => (LinkState::Running, None),
        };
        status::set(&self.context, self.router.generation, state, self.topics.lag(), told);
    }

    /// Other mirrors have all connections, and that for long.
    fn tell_waiting(&self) {
        let is_told = self.context.engine.links().get(self.router.generation);
        if is_told.is_some_and(|status| status.state >= LinkState::Retrying) {
            return;
        }
        let message = format!(
            "other mirrors have all of the {} connections to other clusters",
            self.context.pulls.max_turns()
        );
        let told = Told::new("throttled", message);
        let lag = self.topics.lag();
        status::set(&self.context, self.router.generation, LinkState::Retrying, lag, Some(told));
    }

    /// What is told while records are left out that the remote may not bring.
    fn held_back(&self) -> Option<(LinkState, Told)> {
        let router = self.router.read();
        if !router.holds_back() {
            return None;
        }
        let unknown = router.presented.keys().filter(|cluster| !router.may_bring(**cluster));
        let unknown: Vec<String> = unknown.map(|cluster| format!("{cluster:032x}")).collect();
        let message = format!(
            "records of these clusters are left out until `remote.relays` names them or the router is put again: {}",
            unknown.join(", ")
        );
        Some((LinkState::Blocked, Told::new("unknown_origin", message)))
    }

    /// The beginning of the names of its topics, if it is a mirror of many.
    fn prefix(&self) -> Option<&str> {
        self.config.source.strip_suffix('*')
    }

    /// One pull, and what comes of it.
    async fn step(&mut self) -> Result<Brought, Halt> {
        let now = Instant::now();
        let is_of_many = self.prefix().is_some();
        let next_try = self.topics.next_try().filter(|until| *until > now);
        if let (false, Some(until)) = (is_of_many, next_try) {
            tokio::time::sleep_until(until).await;
            return Ok(Brought::Something);
        }
        // Both until it is written what comes.
        let turn = self.context.pulls.clone().next_turn(self.trouble.is_on(), || self.tell_waiting()).await;
        let now = Instant::now();
        // A topic whose time has come is looked at now: if it says nothing, it is well or gone.
        let due = self.topics.take_due(now);
        let mut is_curious = self.is_first_contact() || self.has_failed || !is_of_many && !due.is_empty();
        if is_of_many {
            self.leave_closed(&due).await;
            self.note_what_went();
            if self.topics.has_dropped() && self.topics.has_room() {
                self.list_again();
            }
            is_curious |= self.topics.has_due() || self.topics.has_retries();
            is_curious |= self.view.is_listing() && !self.waits_to_list(now);
        }
        let (wanted, is_retry) = self.wanted();
        self.was_retry = is_retry;
        let goes_on = self.has_more && !self.has_failed && !is_retry;
        let large_bytes = match self.pace.bytes() {
            _ if self.was_short => LARGE_ANSWER_BYTES,
            SMALL_PULL_BYTES => 0,
            bytes => bytes + bytes / 4,
        };
        if !self.was_short && !self.has_more {
            self.large_place.leave();
        }
        let mut room = match self.was_short || goes_on && large_bytes > 0 {
            true => turn.large_room(large_bytes, &mut self.large_place).await,
            false => turn.small_room(),
        };
        if self.was_short && !room.is_large() {
            // What was asked for did not fit in, and others have all the room.
            return Ok(Brought::Names);
        }
        let is_due = self.topics.has_due() || self.topics.has_retries();
        let next_list = self.list_from.filter(|_| self.waits_to_list(now));
        let longest =
            Duration::from_millis(if is_curious || goes_on || room.is_large() { 0 } else { PULL_WAIT_MS });
        // With many topics that are left alone, the time of one has come all the while.
        let next_look = self
            .topics
            .next_try()
            .map(|until| if is_of_many { until.max(now + RETRY_LOOK_INTERVAL) } else { until });
        let until = [next_look, next_list].into_iter().flatten().min();
        let wait = turn.shorten(until.map_or(longest, |until| longest.min(until - now)));
        let max_bytes = match room.is_large() {
            _ if is_retry => MAX_RETRY_PULL_BYTES,
            true => self.pace.bytes(),
            false => SMALL_PULL_BYTES,
        };
        let (request, asked) = self.request(&wanted, wait, max_bytes);
        let (asked_at, mut bytes) = (Instant::now(), 0);
        let answer = tokio::select! {
            biased;
            answer = self.pull(&request, wait, &mut room, &mut bytes) => answer,
            () = self.until_moved(&asked) => return Ok(Brought::Names),
        };
        self.was_short = room.is_short();
        if self.was_short {
            return Ok(Brought::Names);
        }
        let answer = answer.inspect_err(|halt| {
            if halt.told.code == "payload_too_large" {
                self.wanted_bytes.were_too_many();
            }
        })?;
        self.wanted_bytes.went_well();
        if is_slow(bytes, asked_at.elapsed().saturating_sub(wait)) {
            self.trouble.begin();
        }
        if wait.is_zero() && !is_retry {
            self.pace.note(max_bytes, bytes, asked_at.elapsed());
        }
        if turn.is_in_demand() {
            // It may be long until this has a turn again.
            self.large_place.leave();
        }
        let has_waited = !wait.is_zero() && now.elapsed() + WAIT_ACCURACY >= wait;
        let brought = self.take(answer, &wanted, (&request.query.ask, &asked), is_due).await?;
        Ok(if has_waited { Brought::Something } else { brought })
    }

    /// Whether it is to list all topics, but later.
    fn waits_to_list(&self, now: Instant) -> bool {
        self.view.is_listing() && self.list_from.is_some_and(|from| from > now)
    }

    /// Takes in what was answered to a pull of the topics `wanted`, which are due or were active last.
    async fn take(
        &mut self,
        answer: PullAnswer,
        wanted: &[Arc<str>],
        (ask, asked): (&Ask, &Asked),
        is_due: bool,
    ) -> Result<Brought, Halt> {
        self.check_names(&answer)?;
        self.check_asked(&answer, wanted, ask)?;
        let examined = answer.examined.min(wanted.len());
        if examined == 0 && !wanted.is_empty() {
            let message = "the remote has looked at nothing that it was asked for".into();
            return Err(Halt::retrying("source_damaged", message));
        }
        let goes_on = |topic: &AnsweredTopic| {
            asked.get(&topic.topic).is_some_and(|asked| asked.source_epoch == topic.epoch)
        };
        let said = |topic: &AnsweredTopic| match &topic.answer {
            Answered::Page(page) if page.to_seq == page.start_seq && goes_on(topic) => Said::Nothing,
            Answered::Page(page) if page.to_seq < topic.head_seq => Said::More,
            Answered::Page(_) => Said::All,
            Answered::Gone | Answered::Diverged | Answered::Damaged(_) => Said::Nothing,
        };
        let speaking: BTreeMap<String, (Said, bool)> = answer
            .topics
            .iter()
            .map(|topic| (topic.topic.clone(), (said(topic), topic.answer.has_come_on(topic.head_seq))))
            .collect();
        self.has_more =
            examined < wanted.len() || speaking.values().any(|(said, _)| matches!(said, Said::More));
        let mut has_come_on = {
            let router = self.router.read();
            let is_known = |topic: &AnsweredTopic| router.positions.contains_key(topic.topic.as_str());
            answer.topics.iter().any(|topic| topic.answer == Answered::Gone && is_known(topic))
        };
        let news = answer.news.clone();
        let is_list = matches!(&news, News::Listed(page) if !View::is_short(page));
        // If nothing comes of it now, they are asked for again.
        wanted
            .iter()
            .filter(|topic| speaking.contains_key(&***topic))
            .for_each(|topic| self.topics.add(topic));
        let mut moved = Vec::new();
        if !speaking.is_empty() || self.is_first_contact() {
            moved = self.write(answer, asked).await?;
        }
        let now = Instant::now();
        let mut warm = Vec::new();
        for topic in &wanted[..examined] {
            match speaking.get(&**topic) {
                None if self.still_lacks_dest(topic) => {
                    // Nothing to say now, and no place for it if there were (C-MIRROR-06).
                    self.leave(topic, Why::Refused(Refusal::TopicNotFound), 0);
                }
                None => self.topics.forget(topic),
                _ if self.topics.is_left_alone(topic, now) => {}
                Some((Said::Nothing, _)) => {
                    self.topics.remove(topic);
                    self.topics.cool(topic);
                }
                Some((said, is_progress)) => {
                    match said {
                        Said::More => self.topics.add_again(topic),
                        _ => self.topics.remove(topic),
                    }
                    has_come_on |= is_progress;
                    warm.push(self.kept_name(topic));
                }
            }
        }
        if self.prefix().is_some() {
            moved.iter().for_each(|topic| self.topics.add_again(topic));
            self.topics.warm_up(&warm);
            wanted[examined..].iter().for_each(|topic| self.topics.add(topic));
            if let Some(last) = wanted[..examined].last() {
                self.topics.came_to(self.was_retry, last);
            }
            self.take_news(news).await;
        }
        Ok(match has_come_on {
            true => Brought::Something,
            false if !is_due && (is_list || self.topics.has_due()) => Brought::Names,
            false => Brought::Nothing,
        })
    }

    /// Another cluster is not trusted to answer what it was asked, and that once.
    fn check_asked(&self, answer: &PullAnswer, wanted: &[Arc<str>], ask: &Ask) -> Result<(), Halt> {
        let damaged = |what: String| Halt::retrying("source_damaged", what);
        let mut left: BTreeSet<&str> = wanted.iter().map(|topic| &**topic).collect();
        if let Some(stray) = answer.topics.iter().find(|topic| !left.remove(topic.topic.as_str())) {
            return Err(damaged(format!(
                "the remote tells of topic {:?}, of which it was not asked, or tells it twice",
                stray.topic
            )));
        }
        let checked = View::check(ask, &answer.news);
        checked.map_err(|what| damaged(format!("what the remote answers cannot be: {what}")))
    }

    /// The name of a topic as the router keeps it, if it has a position there: that costs nothing more.
    fn kept_name(&self, topic: &str) -> Arc<str> {
        let router = self.router.read();
        router.positions.get_key_value(topic).map_or_else(|| topic.into(), |(name, _)| name.clone())
    }

    /// Whether a topic that was left alone has no destination yet, and none is made.
    fn still_lacks_dest(&self, topic: &str) -> bool {
        let dest = || self.context.engine.catalog().get(dest_of(&self.config, topic));
        self.topics.has_left(topic) && !self.config.create_dest && dest().is_none()
    }

    /// Whether nothing was written yet of what the remote has said. It is written down even if it has met an empty
    /// cluster: topics that appear later begin with their first record.
    fn is_first_contact(&self) -> bool {
        self.router.read().remote_cluster.is_none()
    }
}

fn diverged(message: &str) -> Halt {
    Halt { state: LinkState::Blocked, told: Told::diverged(message) }
}
