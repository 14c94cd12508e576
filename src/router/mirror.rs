//! One mirror: pulls from a member of another cluster, and has written here what is new.
//!
//! One pull is one long poll over everything that the mirror covers; what it brings is one command, which carries
//! the copies and the positions reached. What another way has brought already is left out of the command, and
//! looked at again when that is applied. Failures are told, and tried again for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::remote::RemoteError;
use super::wire::{AnsweredPage, AnsweredTopic, PullAnswer, PullRequest};
use super::{Context, status};
use crate::engine::{LinkState, PullCursor, PullQuery, Sources};
use crate::limits::{MAX_PULL_BYTES, MIRROR_PAUSE_MS, PULL_WAIT_MS};
use crate::record::HeaderEdit;
use crate::state::{
    Cluster, Copy, CopyItem, CopyPart, Draft, Forwarded, Instance, Outcome, Refusal, RouterConfig,
    SharedRouter, SharedTopic,
};

/// Added to the time that a pull may wait, for a large answer to come over a slow line.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// How far a topic is examined without writing that down; a new leader examines it again.
const MAX_AHEAD_SEQS: u64 = 10_000;

/// A code of the contract and a sentence.
type Told = (String, String);

/// Why a mirror cannot go on at once.
struct Halt {
    state: LinkState,
    told: Told,
}

impl Halt {
    fn blocked(code: &str, message: String) -> Self {
        Halt { state: LinkState::Blocked, told: (code.into(), message) }
    }

    fn retrying(code: &str, message: String) -> Self {
        Halt { state: LinkState::Retrying, told: (code.into(), message) }
    }
}

impl From<RemoteError> for Halt {
    fn from(error: RemoteError) -> Self {
        let state = if error.is_refusal { LinkState::Blocked } else { LinkState::Retrying };
        Halt { state, told: (error.code, error.message) }
    }
}

/// A topic that is left alone for a while.
struct Blocked {
    until: Instant,
    backoff: Backoff,
    told: Told,
}

/// A cursor, and the destination that it counts for: one that was made anew has nothing of what is before it.
#[derive(Clone, Copy)]
struct Progress {
    cursor: PullCursor,
    dest_epoch: u64,
}

struct Mirror {
    context: Context,
    router: Arc<SharedRouter>,
    config: Arc<RouterConfig>,
    own: Cluster,
    /// Which of the URLs is asked.
    next_url: usize,
    /// By source topic.
    blocked: BTreeMap<String, Blocked>,
    /// Seqs not examined, by source topic, of those that had any.
    lags: BTreeMap<String, u64>,
    /// How far topics were examined beyond the positions that are stored, by source topic: there was nothing to
    /// copy, so there was nothing to write. In a mirror both ways all that comes back is such.
    ahead: BTreeMap<String, Progress>,
}

/// Runs one mirror while this member leads. Returns when there is no such router any more.
pub(super) async fn run(context: Context, router: Arc<SharedRouter>) {
    let mut versions = context.engine.watch_routers();
    let mut backoff = Backoff::new(MIRROR_PAUSE_MS);
    let Some(mut mirror) = Mirror::new(context.clone(), router.clone()).await else { return };
    while !router.is_deleted() {
        versions.borrow_and_update();
        let is_paused = {
            let router = router.read();
            mirror.take_config(&router.config);
            router.is_paused
        };
        if is_paused {
            status::set(&context, router.generation, LinkState::Paused, mirror.lag(), None);
            if versions.changed().await.is_err() {
                return;
            }
            continue;
        }
        // A pull may wait for long; what is configured anew counts at once.
        let pulled = tokio::select! {
            biased;
            _ = versions.changed() => continue,
            pulled = mirror.step() => pulled,
        };
        let Err(halt) = pulled else {
            backoff.reset();
            mirror.tell_progress();
            continue;
        };
        mirror.next_url += 1;
        let pause = backoff.pause(&*context.random);
        status::set(&context, router.generation, halt.state, mirror.lag(), Some(halt.told));
        tokio::select! {
            biased;
            _ = versions.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Mirror {
    async fn new(context: Context, router: Arc<SharedRouter>) -> Option<Self> {
        // The router could not have been made before this was known.
        let own = context.engine.own_cluster()?;
        let config = router.read().config.clone();
        Some(Mirror {
            context,
            router,
            config,
            own,
            next_url: 0,
            blocked: BTreeMap::new(),
            lags: BTreeMap::new(),
            ahead: BTreeMap::new(),
        })
    }

    fn take_config(&mut self, config: &Arc<RouterConfig>) {
        if !Arc::ptr_eq(&self.config, config) {
            self.config = config.clone();
            self.blocked.clear();
        }
    }

    fn lag(&self) -> u64 {
        self.lags.values().sum()
    }

    fn tell_progress(&self) {
        // One of a topic is told, though others may have another.
        let worst = self.blocked.values().next().map(|blocked| blocked.told.clone());
        let state = if worst.is_some() { LinkState::Blocked } else { LinkState::Running };
        status::set(&self.context, self.router.generation, state, self.lag(), worst);
    }

    /// One pull, and what comes of it.
    async fn step(&mut self) -> Result<(), Halt> {
        let now = Instant::now();
        let excluded: BTreeSet<String> = self
            .blocked
            .iter()
            .filter(|(_, blocked)| blocked.until > now)
            .map(|(topic, _)| topic.clone())
            .collect();
        let next_try = self.blocked.values().map(|blocked| blocked.until).filter(|until| *until > now).min();
        let sources = match self.config.source.strip_suffix('*') {
            Some(prefix) => Sources::Prefix(prefix.to_owned()),
            None => Sources::One(self.config.source.clone()),
        };
        if let (Sources::One(_), Some(until)) = (&sources, next_try) {
            tokio::time::sleep_until(until).await;
            return Ok(());
        }
        let longest = Duration::from_millis(PULL_WAIT_MS);
        let wait = next_try.map_or(longest, |until| longest.min(until - now));
        let progress = self.progress();
        let request = self.request(sources, excluded, &progress, wait);
        let answer = self.pull(&request, wait).await?;
        let Some(answer) = answer else { return Ok(()) };
        self.write(answer, &progress).await
    }

    /// Where each source topic goes on.
    fn progress(&self) -> BTreeMap<String, Progress> {
        let router = self.router.read();
        let mut all = BTreeMap::new();
        for (source, position) in &router.positions {
            let dest = self.context.engine.catalog().get(dest_of(&self.config, source));
            // A destination that was made anew gets everything anew.
            if dest.is_some_and(|dest| dest.epoch == position.dest_epoch) {
                let (epoch, seq, entry) = (position.source_epoch, position.seq, position.entry);
                let (stored, dest_epoch) = (PullCursor { epoch, seq, entry }, position.dest_epoch);
                let ahead = self.ahead.get(&**source).filter(|ahead| {
                    ahead.dest_epoch == dest_epoch && ahead.cursor.epoch == epoch && ahead.cursor.seq > seq
                });
                let cursor = ahead.map_or(stored, |ahead| ahead.cursor);
                all.insert(source.to_string(), Progress { cursor, dest_epoch });
            }
        }
        all
    }

    fn request(
        &self,
        sources: Sources,
        excluded: BTreeSet<String>,
        progress: &BTreeMap<String, Progress>,
        wait: Duration,
    ) -> PullRequest {
        let query = PullQuery {
            sources,
            excluded,
            cursors: progress.iter().map(|(topic, known)| (topic.clone(), known.cursor)).collect(),
            // Topics that appear later begin with their first record (C-MIRROR-04).
            start: self.router.read().remote_cluster.is_none().then_some(self.config.start),
            filter: self.config.filter.clone(),
            puller_id: self.own.id,
            dest: (self.config.dest != "*").then(|| self.config.dest.clone()),
            wait_ms: wait.as_millis() as u64,
            max_bytes: MAX_PULL_BYTES,
        };
        PullRequest { puller: self.own.clone(), query }
    }

    /// `None` if there was nothing to say.
    async fn pull(&self, request: &PullRequest, wait: Duration) -> Result<Option<PullAnswer>, Halt> {
        let Some(remote) = &self.config.remote else { return Ok(None) };
        let url = &remote.urls[self.next_url % remote.urls.len()];
        let token = remote.token.as_ref().map(|token| token.expose());
        let answer = self.context.remote.pull(url, token, request.encode(), wait + ANSWER_TIMEOUT).await?;
        let answer = PullAnswer::decode(&answer).map_err(|malformed| {
            Halt::retrying("unreachable", format!("what answers at {url} is no member: {malformed}"))
        })?;
        self.check_cluster(&answer.cluster)?;
        Ok((!answer.topics.is_empty()).then_some(answer))
    }

    /// C-MIRROR-15
    fn check_cluster(&self, remote: &Cluster) -> Result<(), Halt> {
        if remote.id == self.own.id {
            let message = "the remote is this very cluster".into();
            return Err(Halt::blocked("same_cluster", message));
        }
        if remote.name == self.own.name {
            let message = format!("the remote is another cluster of the same name, {:?}", remote.name);
            return Err(Halt::blocked("same_name", message));
        }
        if self.router.read().remote_cluster.is_some_and(|known| known != remote.id) {
            return Err(diverged("the remote is another cluster than before"));
        }
        Ok(())
    }

    /// Has written what is new in `answer` to a pull with the cursors of `progress`.
    async fn write(&mut self, answer: PullAnswer, progress: &BTreeMap<String, Progress>) -> Result<(), Halt> {
        let PullAnswer { cluster, instances, topics } = answer;
        let (config, router) = (self.config.clone(), self.router.clone());
        let mut has_diverged = false;
        let (mut parts, mut records) = (Vec::new(), Vec::new());
        for topic in &topics {
            let Some(page) = &topic.page else {
                has_diverged = true;
                self.block(
                    &topic.topic,
                    ("source_diverged".into(), "its history there is another one".into()),
                );
                continue;
            };
            let dest_name = dest_of(&config, &topic.topic);
            let dest = self.context.engine.catalog().get(dest_name);
            // The page begins behind a cursor. If the destination went away while it was on its way, what is to be
            // there now begins with the first record: the next pull asks for that.
            let known = progress.get(&topic.topic).filter(|known| known.cursor.epoch == topic.epoch);
            if known.is_some_and(|known| dest.as_ref().is_none_or(|dest| dest.epoch != known.dest_epoch)) {
                continue;
            }
            let (items, kept) = untaken(page, &instances, dest.as_deref());
            if items.is_empty() && page.lost.is_empty() && self.may_wait(topic, page, dest.as_deref()) {
                continue;
            }
            for (item, records_of_item) in items.iter().filter(|item| is_records(item)).zip(kept) {
                let CopyItem::Records { instance, .. } = item else { continue };
                let origin = &instances[*instance as usize];
                records.extend(records_of_item.iter().map(|record| (record.clone(), origin)));
            }
            parts.push(part(&router, dest_name, topic, page, items, dest.as_deref()));
        }
        if parts.is_empty() {
            // With one source there is nothing else to do.
            let is_all = has_diverged && !self.config.source.ends_with('*');
            return if is_all { Err(diverged("its history there is another one")) } else { Ok(()) };
        }
        let copy = Copy {
            generation: self.router.generation,
            cluster_id: cluster.id,
            instances: instances.clone(),
            parts,
        };
        let draft = Draft::copy(
            &copy,
            records.iter().map(|(record, origin)| (&record[..], self.edit(&cluster, origin))),
        );
        let draft = draft.map_err(|malformed| {
            Halt::retrying("internal", format!("the remote sent a record that is none: {malformed}"))
        })?;
        let forwarded = match self.context.engine.propose(draft).await {
            Ok((Outcome::Forwarded(forwarded), _)) => forwarded,
            Ok((_, _)) => return Err(Halt::retrying("no_leader", "the copies were refused".into())),
            Err(error) => return Err(Halt::retrying(error.code.name(), error.message)),
        };
        self.note(&copy, &topics, &forwarded)
    }

    /// Whether it is enough to remember that this page had nothing to copy; then it is remembered.
    fn may_wait(&mut self, topic: &AnsweredTopic, page: &AnsweredPage, dest: Option<&SharedTopic>) -> bool {
        let stored = {
            let router = self.router.read();
            let position = router.positions.get(topic.topic.as_str()).filter(|position| {
                position.source_epoch == topic.epoch && dest.is_some_and(|it| it.epoch == position.dest_epoch)
            });
            position.map(|position| (position.seq, position.dest_epoch))
        };
        let Some((stored_seq, dest_epoch)) = stored else { return false };
        if page.to_seq.saturating_sub(stored_seq) > MAX_AHEAD_SEQS {
            return false;
        }
        let cursor = PullCursor { epoch: topic.epoch, seq: page.to_seq, entry: page.to_entry };
        self.ahead.insert(topic.topic.clone(), Progress { cursor, dest_epoch });
        self.note_lag(&topic.topic, topic.head_seq.saturating_sub(page.to_seq));
        true
    }

    fn note_lag(&mut self, source: &str, lag: u64) {
        if lag > 0 {
            self.lags.insert(source.to_owned(), lag);
        } else {
            self.lags.remove(source);
        }
    }

    /// How a record that comes from `remote` is labelled here (C-MIRROR-07).
    fn edit<'a>(&self, remote: &Cluster, origin: &'a Instance) -> HeaderEdit<'a> {
        let is_first_hop = origin.cluster_id == remote.id;
        HeaderEdit {
            drops_node: !self.config.preserve_node,
            drops_tag: !self.config.preserve_tag,
            default_node: (is_first_hop && self.config.preserve_node).then_some(&*origin.cluster),
        }
    }

    /// Notes what became of each part.
    fn note(
        &mut self,
        copy: &Copy<'_>,
        topics: &[AnsweredTopic],
        forwarded: &[Forwarded],
    ) -> Result<(), Halt> {
        let heads: BTreeMap<&str, u64> =
            topics.iter().map(|topic| (topic.topic.as_str(), topic.head_seq)).collect();
        let mut has_moved = false;
        for (part, outcome) in copy.parts.iter().zip(forwarded) {
            let left = heads.get(part.source).map_or(0, |head_seq| head_seq.saturating_sub(outcome.seq));
            match outcome.stopped {
                Some(Refusal::RouterMoved) => has_moved = true,
                None => {
                    self.note_lag(part.source, left);
                    self.blocked.remove(part.source);
                }
                Some(refusal) => {
                    self.note_lag(part.source, left);
                    let error = refusal.into_error(part.dest);
                    self.block(part.source, (error.code.name().into(), error.message));
                }
            }
            self.ahead.remove(part.source);
        }
        if !has_moved {
            return Ok(());
        }
        // Positions are not what they were when the pull began; the next one begins with them.
        Err(Halt::retrying("no_leader", "the router was changed meanwhile".into()))
    }

    fn block(&mut self, source: &str, told: Told) {
        let now = Instant::now();
        let backoff = Backoff::new(MIRROR_PAUSE_MS);
        let blocked = self.blocked.entry(source.to_owned()).or_insert(Blocked {
            until: now,
            backoff,
            told: told.clone(),
        });
        blocked.told = told;
        blocked.until = now + blocked.backoff.pause(&*self.context.random);
    }
}

/// What the command says of one topic.
fn part<'a>(
    router: &SharedRouter,
    dest_name: &'a str,
    topic: &'a AnsweredTopic,
    page: &AnsweredPage,
    items: Vec<CopyItem>,
    dest: Option<&SharedTopic>,
) -> CopyPart<'a> {
    let router = router.read();
    let dest_epoch = dest.map(|dest| dest.epoch);
    let position = router
        .positions
        .get(topic.topic.as_str())
        .filter(|position| position.source_epoch == topic.epoch && Some(position.dest_epoch) == dest_epoch);
    CopyPart {
        source: &topic.topic,
        source_epoch: topic.epoch,
        source_type: topic.topic_type,
        source_instance: page.instance,
        dest: dest_name,
        dest_epoch,
        from_seq: position.map(|position| position.seq),
        to_seq: page.to_seq,
        to_entry: page.to_entry,
        lost: page.lost.clone(),
        items,
    }
}

/// The name here of a topic there.
fn dest_of<'a>(config: &'a RouterConfig, source: &'a str) -> &'a str {
    if config.dest == "*" { source } else { &config.dest }
}

fn diverged(message: &str) -> Halt {
    Halt::blocked("source_diverged", format!("{message}; delete the router and make it anew"))
}

fn is_records(item: &CopyItem) -> bool {
    matches!(item, CopyItem::Records { .. })
}

/// What of a page `dest` does not have, and the records of each of those items.
fn untaken<'a>(
    page: &'a AnsweredPage,
    instances: &[Instance],
    dest: Option<&SharedTopic>,
) -> (Vec<CopyItem>, Vec<&'a [Bytes]>) {
    let topic = dest.map(SharedTopic::read);
    let (mut items, mut kept) = (Vec::new(), Vec::new());
    let mut at = 0;
    for item in &page.items {
        let CopyItem::Records { instance, origin_seq, origin_ts_ms, source_seq, count } = item else {
            items.push(item.clone());
            continue;
        };
        let records = &page.records[at..at + *count as usize];
        at += *count as usize;
        let range = *origin_seq..=origin_seq + u64::from(*count) - 1;
        let stretches = match (&topic, instances.get(*instance as usize)) {
            (Some(topic), Some(instance)) => topic.origins.untaken_in(topic.origins.number(instance), range),
            _ => vec![range],
        };
        for stretch in stretches {
            let (skipped, more) = (stretch.start() - origin_seq, stretch.end() - stretch.start() + 1);
            items.push(CopyItem::Records {
                instance: *instance,
                origin_seq: *stretch.start(),
                origin_ts_ms: *origin_ts_ms,
                source_seq: source_seq + skipped,
                count: more as u32,
            });
            kept.push(&records[skipped as usize..(skipped + more) as usize]);
        }
    }
    (items, kept)
}
