//! Watchers: they follow topics over the API's own handlers, at members that come and go.
//!
//! A watcher believes what it is told only as far as the contract goes: frames follow each other, a gap is where a
//! tombstone says so, and what is passed over in silence was deleted. It goes on with its session and the id of
//! the last event, or with a new session from its own cursors, at any member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use antiphon::api::{Api, ApiLimits, router};
use antiphon::engine::Engine;
use antiphon::storage::sim_disk::Dice;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use futures_util::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt;

use crate::calls::at_length;
use crate::clients::{self, Kind};
use crate::oracle::{Seen, tag};
use crate::seeded::Throw;
use crate::world::{MEMBERS, World};

/// A watcher that is told nothing more must have got everything within this time.
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWER_BYTES: usize = 1 << 20;

/// One watcher, between two connections.
pub struct Watcher {
    number: usize,
    member: usize,
    /// Where it is in what it follows, by topic.
    places: BTreeMap<&'static str, Place>,
    session: Option<Session>,
    /// It asks for records of this tag only.
    tag: Option<String>,
    /// Nothing that it follows was there when it was last looked up strongly.
    has_nothing: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Place {
    /// 0: nothing is known of the topic.
    epoch: u64,
    cursor: u64,
    /// Told to have caught up, by the stream that is open.
    has_caught_up: bool,
}

struct Session {
    path: String,
    last_id: String,
    /// The epoch of each topic in it: an older one than the watcher's, if its member lags behind.
    epochs: BTreeMap<&'static str, u64>,
}

/// Runs one watcher until the history is over.
pub async fn run(world: Arc<World>, number: usize, mut dice: Dice) -> Arc<Mutex<Watcher>> {
    let all: Vec<&'static str> = clients::topics().collect();
    let count = dice.between(1, all.len() as u64) as usize;
    let first = dice.below(all.len() as u64) as usize;
    let places = all.iter().cycle().skip(first).take(count).map(|topic| (*topic, Place::default())).collect();
    let tag = dice.chance(30).then(|| tag((0, dice.below(4) as u32)));
    let watcher = Watcher { number, member: 0, places, session: None, tag, has_nothing: false };
    let watcher = Arc::new(Mutex::new(watcher));
    while !world.is_over() && !world.trace.has_complaints() {
        tokio::time::sleep(dice.time_ms(0, 1000)).await;
        let member = dice.below(MEMBERS as u64) as usize;
        connect(&world, &watcher, member, dice.fork(), false).await;
    }
    watcher
}

/// Lets a watcher get to the end of everything, at some member.
pub async fn finish(world: &Arc<World>, watcher: &Arc<Mutex<Watcher>>, dice: &mut Dice) {
    let deadline = Instant::now() + PATIENCE;
    // The session's own stream may have told what there was before.
    {
        let mut watcher = watcher.lock();
        (watcher.session, watcher.has_nothing) = (None, false);
    }
    let member = dice.below(MEMBERS as u64) as usize;
    while !world.trace.has_complaints() {
        connect(world, watcher, member, dice.fork(), true).await;
        if watcher.lock().has_all() {
            return;
        }
        if Instant::now() >= deadline {
            let Watcher { number, places, .. } = &*watcher.lock();
            world.trace.complain(format_args!("w{number} does not get to the end: {places:?}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Follows at `member` for a while, or until everything has come if it `is_last`.
async fn connect(
    world: &Arc<World>,
    watcher: &Arc<Mutex<Watcher>>,
    member: usize,
    mut dice: Dice,
    is_last: bool,
) {
    watcher.lock().member = member;
    let (its_world, its_watcher) = (world.clone(), watcher.clone());
    let following = at_length(world, member, move |engine| async move {
        follow(&its_world, &its_watcher, engine, &mut dice, is_last).await
    });
    let told = match following.await {
        Some(Some(how)) => how,
        Some(None) => "no stream",
        None => "the member is gone",
    };
    let watcher = watcher.lock();
    let number = watcher.number;
    world.trace.note(format_args!("w{number} m{}: {told}, at {:?}", member + 1, watcher.places));
}

async fn follow(
    world: &World,
    watcher: &Mutex<Watcher>,
    engine: Engine,
    dice: &mut Dice,
    is_last: bool,
) -> Option<&'static str> {
    let app = router(Api::new(engine, Arc::default(), ApiLimits::default()));
    let can_resume = watcher.lock().session.as_ref().is_some_and(|session| !session.last_id.is_empty());
    if !(can_resume && dice.chance(50)) {
        create(world, watcher, &app, dice).await?;
    }
    let request = {
        let watcher = watcher.lock();
        let Session { path, last_id, .. } = watcher.session.as_ref()?;
        let request = Request::get(path.as_str());
        let request = if last_id.is_empty() { request } else { request.header("last-event-id", last_id) };
        request.body(Body::empty()).ok()?
    };
    let response = app.oneshot(request).await.ok()?;
    match response.status().as_u16() {
        200 => {}
        404 => {
            watcher.lock().session = None;
            return Some("the session is gone");
        }
        503 => return None,
        status => world.trace.complain(format_args!("a stream was answered {status}")),
    }
    watcher.lock().places.values_mut().for_each(|place| place.has_caught_up = false);
    let mut body = response.into_body().into_data_stream();
    let until = Instant::now() + if is_last { PATIENCE } else { dice.time_ms(20, 8000) };
    // What was sent last is lost with some connections.
    let is_lossy = !is_last && dice.chance(40);
    let heard_until = if is_lossy { until - dice.time_ms(0, 500) } else { until + PATIENCE };
    let mut buffer = String::new();
    loop {
        if (is_last && watcher.lock().has_all()) || (!is_last && world.is_over()) {
            return Some("has seen enough");
        }
        match timeout_at(until, body.next()).await {
            Err(_) => return Some("goes on elsewhere"),
            Ok(Some(Ok(_))) if Instant::now() >= heard_until => continue,
            Ok(Some(Ok(chunk))) => buffer.push_str(&String::from_utf8_lossy(&chunk)),
            Ok(_) => return Some("the stream has ended"),
        }
        while let Some((event, rest)) = buffer.split_once("\n\n") {
            watcher.lock().take(world, event);
            buffer = rest.to_owned();
        }
        // Readers are slow now and then; it is for them that frames grow.
        if dice.chance(3) {
            tokio::time::sleep(dice.time_ms(0, 2000)).await;
        }
    }
}

/// Makes a session from the watcher's own cursors.
async fn create(world: &World, watcher: &Mutex<Watcher>, app: &Router, dice: &mut Dice) -> Option<()> {
    let is_strong = dice.chance(60);
    let topics: serde_json::Map<String, Value> = {
        let watcher = watcher.lock();
        let options = |place: &Place| match place.epoch {
            0 => json!({}),
            epoch => json!({ "from_seq": place.cursor, "epoch": epoch }),
        };
        watcher.places.iter().map(|(topic, place)| ((*topic).to_owned(), options(place))).collect()
    };
    // Few values, so that several watchers of a topic share what is written down for one.
    let limit = [1, 7, 256][dice.below(3) as usize];
    let consistency = if is_strong { "strong" } else { "eventual" };
    let mut body =
        json!({ "topics": topics, "limit": limit, "heartbeat_ms": 1000, "consistency": consistency });
    if let Some(tag) = &watcher.lock().tag {
        body["filter"] = json!(["tag", "Eq", tag]);
    }
    let request = Request::post("/v0/watch?lenient=true").header("content-type", "application/json");
    let began = world.oracle.begin_read();
    let response = app.clone().oneshot(request.body(Body::from(body.to_string())).ok()?).await.ok()?;
    let status = response.status().as_u16();
    let answer = axum::body::to_bytes(response.into_body(), ANSWER_BYTES).await.ok()?;
    // A watch of nothing is no watch, however lenient.
    let has_none = status == 404;
    if status != 200 && !has_none {
        if status != 503 {
            let answer = String::from_utf8_lossy(&answer);
            world.trace.complain(format_args!("a watch of {body} was answered {status} {answer}"));
        }
        return None;
    }
    let answer: Value = serde_json::from_slice(&answer).ok()?;
    let mut watcher = watcher.lock();
    let (mut epochs, member) = (BTreeMap::new(), watcher.member);
    for (topic, place) in &mut watcher.places {
        let found = &answer["topics"][*topic];
        let told = found["epoch"].as_u64().zip(found["head_seq"].as_u64());
        if is_strong {
            world.oracle.strong_read(member, topic, began, told);
        }
        match told {
            Some((epoch, _)) => {
                if place.epoch == 0 {
                    place.epoch = epoch;
                }
                epochs.insert(*topic, epoch);
            }
            // Deleted while nobody was looking; or not there yet, where a member lags behind.
            None if is_strong => *place = Place::default(),
            None => {}
        }
    }
    watcher.has_nothing = has_none && is_strong;
    if has_none {
        watcher.session = None;
        return None;
    }
    let path = answer["stream_url"].as_str()?.to_owned();
    watcher.session = Some(Session { path, last_id: String::new(), epochs });
    Some(())
}

impl Watcher {
    /// Whether nothing is left to be told of what is followed.
    fn has_all(&self) -> bool {
        let Some(session) = &self.session else { return self.has_nothing };
        self.places.iter().all(|(topic, place)| place.has_caught_up || !session.epochs.contains_key(topic))
    }

    /// Takes one event of the stream.
    fn take(&mut self, world: &World, event: &str) {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let (id, name) = (field("id: "), field("event: "));
        let Ok(data) = serde_json::from_str::<Value>(field("data: ")) else { return };
        if name == "error" {
            let is_excused = data["code"] == 500 && world.machines[self.member].lock().may_fail_to_read();
            if data["code"] != 503 && !is_excused {
                world.trace.complain(format_args!("w{} was told {event}", self.number));
            }
            return;
        }
        if let Some(complaint) = self.told(world, name, &data).err() {
            let (number, member) = (self.number, self.member + 1);
            world.trace.complain(format_args!("w{number} m{member}: {complaint}: {}", cut(event)));
        }
        if let Some(session) = &mut self.session
            && !id.is_empty()
        {
            session.last_id = id.to_owned();
        }
    }

    /// Something of one topic; what must not be comes as words.
    fn told(&mut self, world: &World, name: &str, data: &Value) -> Result<(), String> {
        let number = |field: &str| data[field].as_u64().ok_or_else(|| format!("no {field}"));
        let name_of = data["topic"].as_str().unwrap_or_default();
        let session = self.session.as_mut().ok_or("nothing is followed")?;
        let Some((topic, place)) = self.places.iter_mut().find(|(topic, _)| **topic == name_of) else {
            return Err("of a topic that was not asked for".to_owned());
        };
        let (kind, Some(epoch)) = (clients::kind(topic), session.epochs.get(topic).copied()) else {
            // Its end was told before.
            return if name == "topic-deleted" {
                Ok(())
            } else {
                Err("of a topic that has ended".to_owned())
            };
        };
        if name == "topic-deleted" {
            session.epochs.remove(topic);
            if epoch >= place.epoch {
                *place = Place::default();
            }
            return if kind == Kind::Fleeting { Ok(()) } else { Err("nobody deletes it".to_owned()) };
        }
        let is_new_instance = epoch > place.epoch;
        let has_holes = kind == Kind::Pruned || self.tag.is_some();
        let pass = |seqs| world.oracle.passed(topic, epoch, self.tag.as_deref(), seqs);
        if epoch < place.epoch {
            return Err(format!("of epoch {epoch}, after {}", place.epoch));
        }
        match name {
            "tombstone" => {
                let (gap_from, gap_to) = (number("gap_from")?, number("gap_to")?);
                let earliest_seq = number("earliest_seq")?;
                let is_right = match data["reason"].as_str() {
                    Some("recreated") => is_new_instance && gap_from == 1,
                    Some("cap" | "ttl" | "from_seq_too_old") => {
                        let is_next =
                            gap_from == place.cursor + 1 || (self.tag.is_some() && gap_from > place.cursor);
                        if is_next && gap_from > place.cursor + 1 {
                            pass(place.cursor + 1..=gap_from - 1);
                        }
                        let is_whole = is_next && gap_to == earliest_seq - 1;
                        kind == Kind::Losing && !is_new_instance && is_whole
                    }
                    _ => false,
                };
                *place = Place { epoch, cursor: earliest_seq - 1, has_caught_up: false };
                if is_right { Ok(()) } else { Err("no such gap".to_owned()) }
            }
            _ if is_new_instance => Err(format!("epoch {epoch} begins without a word after {}", place.epoch)),
            "record" => {
                let (from_seq, to_seq) = (number("from_seq")?, number("to_seq")?);
                let before = place.cursor;
                if from_seq < before || (from_seq > before && !has_holes) {
                    return Err(format!("after seq {before}"));
                }
                let rows = data["records"].as_array().ok_or("no records")?;
                let records: Option<Vec<(u64, u64, String)>> = rows
                    .iter()
                    .map(|row| {
                        let data = format!("\"{}\"", row["data"].as_str()?);
                        Some((row["$seq"].as_u64()?, row["$ts"].as_u64()?, data))
                    })
                    .collect();
                let records = records.filter(|records| !records.is_empty()).ok_or("no whole records")?;
                place.cursor = to_seq;
                world.oracle.watched(records.len());
                if from_seq > before {
                    pass(before + 1..=from_seq);
                }
                let (next_from_seq, head_seq) = (to_seq, number("head_seq")?);
                let (member, tag) = (self.member, self.tag.as_deref());
                world.oracle.page(&Seen {
                    member,
                    topic,
                    epoch,
                    from_seq,
                    next_from_seq,
                    head_seq,
                    tag,
                    records,
                });
                Ok(())
            }
            "caught-up" => {
                let head_seq = number("head_seq")?;
                let before = std::mem::replace(&mut place.cursor, head_seq);
                place.has_caught_up = true;
                if before > head_seq || (before < head_seq && !has_holes) {
                    return Err(format!("at seq {before}"));
                }
                if before < head_seq {
                    pass(before + 1..=head_seq);
                }
                Ok(())
            }
            _ => Err("an unknown event".to_owned()),
        }
    }
}

fn cut(event: &str) -> String {
    event.chars().take(400).collect()
}
