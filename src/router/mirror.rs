//! One mirror: pulls from a member of another cluster, and has written here what is new.
//!
//! One pull is one long poll over everything that the mirror covers; what it brings is one command, which carries
//! the copies and the positions reached. What another way has brought already is left out of the command, and
//! looked at again when that is applied. Failures are told, and tried again for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::answer::{Answered, AnsweredPage, AnsweredTopic, Damage, PullAnswer, Skips};
use super::backoff::Backoff;
use super::page::{dest_of, is_covered, is_records, leave_out, lost, part, untaken};
use super::remote::RemoteError;
use super::standing::Standing;
use super::status::{self, Told};
use super::wire::PullRequest;
use crate::config::Secret;
use crate::engine::{Consistency, LinkState, PullCursor, PullQuery, SecretMissing, Sources};
use crate::limits::{MAX_PULL_BYTES, MAX_RELAYS, MIRROR_PAUSE_MS, PULL_WAIT_MS};
use crate::record::HeaderEdit;
use crate::state::{
    Cluster, Copy, CopyItem, Draft, Forwarded, Instance, Outcome, Position, Refusal, RouterConfig,
    SharedRouter, SharedTopic,
};
use crate::task;

/// Added to the time that a pull may wait, for the answer to begin.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How far a topic is examined without writing that down; a new leader examines it again.
const MAX_AHEAD_SEQS: u64 = 10_000;

/// How often it is looked whether what was asked for is still for the same topics here.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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

struct Mirror {
    context: Context,
    router: Arc<SharedRouter>,
    config: Arc<RouterConfig>,
    own: Cluster,
    /// Which of the URLs is asked.
    next_url: usize,
    standing: Standing,
    /// How far topics were examined beyond the positions that are stored, by source topic: there was nothing to
    /// copy, so there was nothing to write. In a mirror both ways all that comes back is such. Each with the
    /// instance here that needed nothing.
    ahead: BTreeMap<String, (u64, PullCursor)>,
    /// The last pull failed: the next one waits for nothing, so that it is told at once if the link is well again.
    has_failed: bool,
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
            status::set(&context, router.generation, LinkState::Paused, mirror.standing.lag(), None);
            if versions.changed().await.is_err() {
                return;
            }
            continue;
        }
        let config = mirror.config.clone();
        // A pull may wait for long; what is configured anew counts at once.
        let pulled = tokio::select! {
            biased;
            () = changed(&mut versions, &router, &config) => continue,
            pulled = mirror.step() => pulled,
        };
        mirror.has_failed = pulled.is_err();
        let Err(halt) = pulled else {
            backoff.reset();
            mirror.tell_progress();
            continue;
        };
        mirror.next_url += 1;
        let pause = backoff.pause(&*context.random);
        status::set(&context, router.generation, halt.state, mirror.standing.lag(), Some(halt.told));
        tokio::select! {
            biased;
            () = changed(&mut versions, &router, &config) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Returns when `router` is paused, is gone, or is not configured as `config` says any more; what becomes of other
/// routers is no reason to give a pull up.
async fn changed(versions: &mut watch::Receiver<u64>, router: &SharedRouter, config: &Arc<RouterConfig>) {
    loop {
        // Without a sender this member is ending, and this task with it.
        if versions.changed().await.is_err() {
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
        let config = router.read().config.clone();
        Some(Mirror {
            context,
            router,
            config,
            own,
            next_url: 0,
            standing: Standing::default(),
            ahead: BTreeMap::new(),
            has_failed: false,
        })
    }

    fn take_config(&mut self, config: &Arc<RouterConfig>) {
        if !Arc::ptr_eq(&self.config, config) {
            self.config = config.clone();
            self.standing.unblock_all();
            // It may have to look again at what was examined.
            self.ahead.clear();
        }
    }

    fn tell_progress(&self) {
        // One of a topic is told, though others may have another.
        let (state, told) = match self.standing.worst().or_else(|| self.held_back()) {
            Some((state, told)) => (state, Some(told)),
            None => (LinkState::Running, None),
        };
        status::set(&self.context, self.router.generation, state, self.standing.lag(), told);
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

    /// One pull, and what comes of it.
    async fn step(&mut self) -> Result<(), Halt> {
        let now = Instant::now();
        let (excluded, next_try) = (self.standing.excluded(now), self.standing.next_try(now));
        let sources = match self.config.source.strip_suffix('*') {
            Some(prefix) => Sources::Prefix(prefix.to_owned()),
            None => Sources::One(self.config.source.clone()),
        };
        if let (Sources::One(_), Some(until)) = (&sources, next_try) {
            tokio::time::sleep_until(until).await;
            return Ok(());
        }
        // A topic whose time has come is looked at now: if it says nothing, it is well or gone.
        let is_curious = self.is_first_contact() || self.has_failed || self.standing.has_due(now);
        let longest = Duration::from_millis(if is_curious { 0 } else { PULL_WAIT_MS });
        let wait = next_try.map_or(longest, |until| longest.min(until - now));
        let (request, asked) = self.request(sources, excluded, wait);
        let answer = tokio::select! {
            biased;
            answer = self.pull(&request, wait) => answer?,
            () = self.until_moved(&asked) => return Ok(()),
        };
        let speaking = answer.topics.iter().map(|topic| topic.topic.as_str()).collect();
        self.standing.forget_silent(&speaking, &request.query.excluded);
        if answer.topics.is_empty() && !self.is_first_contact() {
            return Ok(());
        }
        self.write(answer, &asked).await
    }

    /// Whether nothing was written yet of what the remote has said. Where to begin is asked only then, so that it
    /// has met an empty cluster is written down too: topics that appear later begin with their first record.
    fn is_first_contact(&self) -> bool {
        self.router.read().remote_cluster.is_none()
    }

    /// Returns when a topic is gone for which something was asked.
    async fn until_moved(&self, asked: &Asked) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if asked.keys().any(|source| self.has_moved(asked, source)) {
                return;
            }
        }
    }

    /// Whether what was asked of `source` goes on from where a topic was that is gone by now.
    fn has_moved(&self, asked: &Asked, source: &str) -> bool {
        let dest = || self.context.engine.catalog().get(dest_of(&self.config, source));
        asked.get(source).is_some_and(|asked| dest().is_none_or(|dest| dest.epoch != asked.dest_epoch))
    }

    fn request(&self, sources: Sources, excluded: BTreeSet<String>, wait: Duration) -> (PullRequest, Asked) {
        let router = self.router.read();
        let (mut cursors, mut asked) = (BTreeMap::new(), Asked::new());
        for (source, position) in &router.positions {
            let dest = self.context.engine.catalog().get(dest_of(&self.config, source));
            // A destination that was made anew gets everything anew.
            if dest.is_some_and(|dest| dest.epoch == position.dest_epoch) {
                let (epoch, seq, entry) = (position.source_epoch, position.seq, position.entry);
                let ahead = self.ahead.get(&**source).filter(|(dest_epoch, ahead)| {
                    *dest_epoch == position.dest_epoch && ahead.epoch == epoch && ahead.seq > seq
                });
                let cursor = ahead.map_or(PullCursor { epoch, seq, entry }, |(_, ahead)| *ahead);
                cursors.insert(source.to_string(), cursor);
                asked.insert(source.to_string(), *position);
            }
        }
        let query = PullQuery {
            sources,
            excluded,
            cursors,
            // Topics that appear later begin with their first record (C-MIRROR-04).
            start: router.remote_cluster.is_none().then_some(self.config.start),
            filter: self.config.filter.clone().map(Arc::new),
            puller_id: self.own.id,
            dest: (self.config.dest != "*").then(|| self.config.dest.clone()),
            wait_ms: wait.as_millis() as u64,
            max_bytes: MAX_PULL_BYTES,
        };
        (PullRequest { puller: self.own.clone(), query }, asked)
    }

    async fn pull(&self, request: &PullRequest, wait: Duration) -> Result<PullAnswer, Halt> {
        let Some(remote) = &self.config.remote else {
            return Err(Halt::blocked("internal", "the router is no mirror".into()));
        };
        let url = &remote.urls[self.next_url % remote.urls.len()];
        let token = self.context.engine.open_token(&self.router.name, &self.config).map_err(|SecretMissing| {
            let message = "the token is sealed under a secret that this member does not have: set cluster_secret_previous, \
                           or put the router with its token";
            Halt::blocked("secret_missing", message.into())
        })?;
        let token = token.as_ref().map(Secret::expose);
        let answer = self.context.remote.pull(url, token, request.encode(), wait + ANSWER_TIMEOUT).await?;
        let skips = {
            let router = self.router.read();
            router.skips.iter().map(|(source, skips)| (source.to_string(), skips.clone())).collect()
        };
        let answer = read_answer(answer, skips).await.map_err(|malformed| {
            Halt::retrying("source_damaged", format!("what answers at {url} makes no sense: {malformed}"))
        })?;
        self.check_cluster(&answer.cluster)?;
        Ok(answer)
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

    /// Has written what is new in `answer`.
    async fn write(&mut self, answer: PullAnswer, asked: &Asked) -> Result<(), Halt> {
        let PullAnswer { cluster, instances, mut topics } = answer;
        let config = self.config.clone();
        if let Some(stray) = topics.iter().find(|topic| !is_covered(&config.source, &topic.topic)) {
            let message = format!("the remote names {:?}, for which it was not asked", stray.topic);
            return Err(Halt::retrying("internal", message));
        }
        let (held, presents_new) = self.leave_out(&cluster, &instances, &mut topics);
        let mut has_diverged = false;
        let (mut parts, mut records, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for topic in &topics {
            let page = match &topic.answer {
                Answered::Page(page) => page,
                Answered::Gone => {
                    gone.push(topic.topic.as_str());
                    continue;
                }
                Answered::Damaged(damage) => {
                    self.distrust(&topic.topic, damage);
                    continue;
                }
                Answered::Diverged => {
                    has_diverged = true;
                    let told = diverged("its history there is another one").told;
                    self.standing.block(&topic.topic, told, &*self.context.random);
                    continue;
                }
            };
            // One that was made anew gets everything, and not what follows the end of the one before.
            if self.has_moved(asked, &topic.topic) {
                continue;
            }
            let dest_name = dest_of(&config, &topic.topic);
            let dest = self.context.engine.catalog().get(dest_name);
            if !self.is_plausible(page, &instances).await {
                self.distrust(
                    &topic.topic,
                    &Damage::of_page("it names records of this cluster that are none"),
                );
                continue;
            }
            let (items, kept) = untaken(page, &instances, dest.as_deref());
            let has_nothing = items.is_empty() && page.lost.seqs.is_empty() && !presents_new;
            let is_held = held.contains_key(topic.topic.as_str());
            if has_nothing && self.may_wait(topic, page, dest.as_deref(), is_held) {
                continue;
            }
            for (item, records_of_item) in items.iter().filter(|item| is_records(item)).zip(kept) {
                let CopyItem::Records { instance, .. } = item else { continue };
                let origin = &instances[*instance as usize];
                records.extend(records_of_item.iter().map(|record| (record.clone(), origin)));
            }
            // By now it may be another one again; then the command changes nothing.
            let asked = asked.get(&topic.topic);
            let dest_epoch = asked.map(|asked| asked.dest_epoch).or(dest.as_ref().map(|dest| dest.epoch));
            let lost = lost(page, &instances, dest.as_deref()).clone();
            parts.push(part(asked, dest_name, (topic, page), items, lost, dest_epoch));
        }
        if parts.is_empty() && gone.is_empty() && !self.is_first_contact() {
            // With one source there is nothing else to do.
            let is_all = has_diverged && !self.config.source.ends_with('*');
            return if is_all { Err(diverged("its history there is another one")) } else { Ok(()) };
        }
        let copy = Copy {
            generation: self.router.generation,
            cluster_id: cluster.id,
            instances: instances.clone(),
            parts,
            gone,
            held: held.iter().map(|(source, seq)| (source.as_str(), *seq)).collect(),
        };
        let draft = Draft::copy(
            &copy,
            records.iter().map(|(record, origin)| (&record[..], self.edit(&cluster, origin))),
        );
        let draft = draft.map_err(|malformed| {
            Halt::retrying("source_damaged", format!("what the remote sent cannot be stored: {malformed}"))
        })?;
        let forwarded = match self.context.engine.propose(draft).await {
            Ok((Outcome::Forwarded(forwarded), _)) => forwarded,
            Ok((Outcome::Refused(Refusal::BadRecord), _)) => {
                return Err(Halt::retrying("source_damaged", "what the remote sent is no record".into()));
            }
            Ok((_, _)) => return Err(Halt::retrying("no_leader", "the copies were refused".into())),
            Err(error) => return Err(Halt::retrying(error.code.name(), error.message)),
        };
        self.note(&copy, &topics, &forwarded)
    }

    /// Takes out of the pages what the remote may not bring. Gives the seqs behind which something was, by topic, and
    /// whether it is the first time that the remote brings records of some cluster.
    fn leave_out(
        &self,
        remote: &Cluster,
        instances: &[Instance],
        topics: &mut [AnsweredTopic],
    ) -> (BTreeMap<String, u64>, bool) {
        let router = self.router.read();
        let may_bring = |instance: u32| {
            let cluster = instances[instance as usize].cluster_id;
            // Of its own records this cluster knows which can be.
            cluster == remote.id || cluster == self.own.id || router.may_bring(cluster)
        };
        let mut held = BTreeMap::new();
        for topic in topics {
            let Answered::Page(page) = &mut topic.answer else { continue };
            let position = router.positions.get(topic.topic.as_str());
            let from_seq = position.filter(|it| it.source_epoch == topic.epoch).map_or(0, |it| it.seq);
            if let Some(seq) = leave_out(page, from_seq, may_bring) {
                held.insert(topic.topic.clone(), seq);
            }
        }
        let is_new = |instance: &Instance| {
            let cluster = instance.cluster_id;
            cluster != remote.id && cluster != self.own.id && !router.presented.contains_key(&cluster)
        };
        (held, router.presented.len() < MAX_RELAYS && instances.iter().any(is_new))
    }

    /// Leaves a topic alone of which the remote says what cannot be (C-MIRROR-18).
    fn distrust(&mut self, topic: &str, damage: &Damage) {
        let Damage { seq, what } = *damage;
        let message = match seq {
            Some(seq) => format!("record {seq} of topic {topic:?} of the remote cannot be stored: {what}"),
            None => format!("what the remote says of topic {topic:?} cannot be: {what}"),
        };
        let told = Told { topic: Some(topic.to_owned()), seq, ..Told::new("source_damaged", message) };
        self.standing.distrust(topic, told);
    }

    /// Whether all that the page says was first written in this cluster can have been.
    async fn is_plausible(&self, page: &AnsweredPage, instances: &[Instance]) -> bool {
        let engine = &self.context.engine;
        let is_own = |instance: u32| {
            let own = instances.get(instance as usize).filter(|it| it.cluster_id == self.own.id);
            own.map(|own| (&*own.topic, own.epoch))
        };
        let own = |item: &CopyItem| match item {
            CopyItem::Records { instance, origin_seq, count, .. } => {
                is_own(*instance).map(|own| (own, origin_seq + u64::from(*count) - 1))
            }
            CopyItem::Gap { instance, to_seq, .. } => is_own(*instance).map(|own| (own, *to_seq)),
        };
        let may_be = |((topic, epoch), seq): ((&str, u64), u64)| engine.may_have_written(topic, epoch, seq);
        if page.items.iter().filter_map(own).all(may_be) {
            return true;
        }
        // What another member has applied already may not have been here.
        engine.fence(Consistency::Strong).await.is_ok() && page.items.iter().filter_map(own).all(may_be)
    }

    /// Whether it is enough to remember that this page had nothing to copy; then it is remembered.
    fn may_wait(
        &mut self,
        topic: &AnsweredTopic,
        page: &AnsweredPage,
        dest: Option<&SharedTopic>,
        is_held: bool,
    ) -> bool {
        let Some(dest) = dest else { return false };
        let stored_seq = {
            let router = self.router.read();
            let position = router
                .positions
                .get(topic.topic.as_str())
                .filter(|position| position.source_epoch == topic.epoch && dest.epoch == position.dest_epoch);
            // Where something was first left out is written down before anything behind it is passed.
            position.filter(|position| !is_held || position.held_seq.is_some()).map(|position| position.seq)
        };
        if stored_seq.is_none_or(|seq| page.to_seq - seq.min(page.to_seq) > MAX_AHEAD_SEQS) {
            return false;
        }
        let cursor = PullCursor { epoch: topic.epoch, seq: page.to_seq, entry: page.to_entry };
        self.ahead.insert(topic.topic.clone(), (dest.epoch, cursor));
        self.standing.unblock(&topic.topic);
        self.standing.note_lag(&topic.topic, topic.head_seq.saturating_sub(page.to_seq));
        true
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
                    self.standing.note_lag(part.source, left);
                    self.standing.unblock(part.source);
                }
                Some(refusal) => {
                    self.standing.note_lag(part.source, left);
                    if outcome.taken > 0 {
                        // It comes along, if slowly.
                        self.standing.unblock(part.source);
                    }
                    let error = refusal.into_error(part.dest);
                    let told = Told::new(error.code.name(), error.message);
                    self.standing.block(part.source, told, &*self.context.random);
                }
            }
            self.ahead.remove(part.source);
        }
        for source in &copy.gone {
            self.standing.forget(source);
            self.ahead.remove(*source);
        }
        if !has_moved {
            return Ok(());
        }
        // Positions are not what they were when the pull began; the next one begins with them.
        Err(Halt::retrying("no_leader", "the router was changed meanwhile".into()))
    }
}

/// Away from the threads that serve requests, if it is much.
async fn read_answer(answer: Bytes, skips: Skips) -> Result<PullAnswer, String> {
    let is_quick = answer.len() < QUICK_ANSWER_BYTES;
    let read = move || PullAnswer::decode(&answer, &skips).map_err(io::Error::from);
    let read = if is_quick { read() } else { task::blocking(read).await };
    read.map_err(|error| error.to_string())
}

fn diverged(message: &str) -> Halt {
    Halt::blocked("source_diverged", format!("{message}; delete the router and make it anew"))
}
