//! What is between clusters: pulls that take their time, get lost, and find nobody.
//!
//! A pull goes to the handler of a member's API, as over HTTP; what a connection would go through is in the
//! waiting and in the errors.

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use antiphon::api::{Api, ApiLimits, router};
use antiphon::limits::{MAX_PULL_ANSWER_BYTES, REMOTE_CONNECT_TIMEOUT, REMOTE_READ_TIMEOUT};
use antiphon::router::{AnswerRoom, Answering, PULL_CONTENT_TYPE, PULL_PATH, Remote, RemoteError, refused};
use antiphon::storage::sim_disk::Dice;
use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

use crate::calls;
use crate::hostile;
use crate::member::engine_of;
use crate::seeded::Throw;
use crate::world::{MEMBERS, World};

/// How often it is looked whether a line is mended.
const STALL_CHECK: Duration = Duration::from_millis(20);

/// The lines between the clusters of a history.
pub struct Wide {
    lines: Mutex<Lines>,
    worlds: OnceLock<Vec<Weak<World>>>,
}

struct Lines {
    dice: Dice,
    /// From one cluster to another.
    is_cut: Vec<Vec<bool>>,
    delay_us: (u64, u64),
    /// Of a hundred requests, and of a hundred answers.
    lost: u64,
    /// Of a hundred answers: those that are cut, damaged or forged.
    spoiled: u64,
    /// No remote may bring records of clusters that nobody named.
    is_strict: bool,
}

impl Wide {
    pub fn new(dice: Dice, count: usize) -> Arc<Self> {
        let is_cut = vec![vec![false; count]; count];
        let lines = Mutex::new(Lines {
            dice,
            is_cut,
            delay_us: (500, 20_000),
            lost: 0,
            spoiled: 0,
            is_strict: false,
        });
        Arc::new(Wide { lines, worlds: OnceLock::new() })
    }

    /// Tells which clusters there are.
    pub fn connect(&self, worlds: &[Arc<World>]) {
        let _ = self.worlds.set(worlds.iter().map(Arc::downgrade).collect());
    }

    pub fn set_cut(&self, from: usize, to: usize, is_cut: bool) {
        self.lines.lock().is_cut[from][to] = is_cut;
    }

    /// Makes all lines worse or better: delays up to `high_us`, and losses in percent.
    pub fn set_quality(&self, high_us: u64, lost: u64) {
        let mut lines = self.lines.lock();
        (lines.delay_us, lines.lost) = ((high_us / 20, high_us), lost);
    }

    /// Has remotes lie in so many of a hundred answers.
    pub fn set_spoiled(&self, spoiled: u64) {
        self.lines.lock().spoiled = spoiled;
    }

    pub fn be_strict(&self) {
        self.lines.lock().is_strict = true;
    }

    pub fn mend(&self) {
        self.set_spoiled(0);
        self.lines.lock().is_cut.iter_mut().flatten().for_each(|is_cut| *is_cut = false);
        self.set_quality(20_000, 0);
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.lines.lock().is_cut[from][to]
    }

    async fn travel(&self, from: usize, to: usize) {
        let delay = {
            let lines = &mut *self.lines.lock();
            Duration::from_micros(lines.dice.between(lines.delay_us.0, lines.delay_us.1))
        };
        sleep(delay).await;
        while self.is_cut(from, to) {
            sleep(STALL_CHECK).await;
        }
    }

    /// What arrives of an answer.
    fn spoil(&self, request: &Bytes, answer: Bytes) -> Bytes {
        let lines = &mut *self.lines.lock();
        if !lines.dice.chance(lines.spoiled) {
            return answer;
        }
        hostile::lie(request, &answer, lines.is_strict, &mut lines.dice)
    }

    fn loses(&self) -> bool {
        let lines = &mut *self.lines.lock();
        lines.dice.chance(lines.lost)
    }
}

/// The client address of a member.
pub fn url(cluster: usize, member: usize) -> String {
    format!("http://c{}-m{}:4000", cluster + 1, member + 1)
}

/// The lines as the members of one cluster use them.
pub struct SimRemote {
    pub wide: Arc<Wide>,
    pub cluster: usize,
}

impl SimRemote {
    async fn ask(&self, url: &str, request: Bytes) -> Result<Bytes, RemoteError> {
        let worlds = self.wide.worlds.get().map(Vec::as_slice).unwrap_or_default();
        let found = (0..worlds.len())
            .flat_map(|cluster| (0..MEMBERS).map(move |member| (cluster, member)))
            .find(|(cluster, member)| self::url(*cluster, *member) == url);
        let world = found.and_then(|(cluster, _)| worlds[cluster].upgrade());
        let (Some(world), Some((there, member))) = (world, found) else {
            return Err(RemoteError::unreachable("no such host"));
        };
        let (wide, here) = (&self.wide, self.cluster);
        let connecting = async {
            wide.travel(here, there).await;
            wide.travel(there, here).await;
            while world.net.is_dark(member) {
                sleep(STALL_CHECK).await;
            }
        };
        if timeout(REMOTE_CONNECT_TIMEOUT, connecting).await.is_err() {
            return Err(RemoteError::unreachable("nothing answers"));
        }
        if engine_of(&world.machines[member]).is_none() {
            return Err(RemoteError::unreachable("refused"));
        }
        let exchange = async {
            wide.travel(here, there).await;
            if wide.loses() {
                std::future::pending::<()>().await;
            }
            let asked = request.clone();
            let answered = calls::at(&world, member, move |engine| async move {
                let app = router(Api::new(engine, Arc::default(), ApiLimits::default()));
                let post = Request::post(PULL_PATH).header("content-type", PULL_CONTENT_TYPE);
                let response = app.oneshot(post.body(Body::from(request)).ok()?).await.ok()?;
                let status = response.status().as_u16();
                let body = axum::body::to_bytes(response.into_body(), MAX_PULL_ANSWER_BYTES).await.ok()?;
                Some((status, body))
            });
            let answered = answered.await.flatten();
            wide.travel(there, here).await;
            match answered {
                Some(_) if wide.loses() => Err(RemoteError::unreachable("the connection broke")),
                Some((200, body)) => Ok(wide.spoil(&asked, body)),
                Some((status, body)) => Err(refused(status, &body)),
                None => Err(RemoteError::unreachable("the member is gone")),
            }
        };
        let answered = timeout(REMOTE_READ_TIMEOUT, exchange).await;
        answered.unwrap_or_else(|_| Err(RemoteError::unreachable("nothing more comes")))
    }
}

impl Remote for SimRemote {
    fn pull<'a>(
        &'a self,
        url: &'a str,
        _token: Option<&'a str>,
        request: Bytes,
        within: Duration,
        room: &'a mut AnswerRoom,
    ) -> Answering<'a> {
        Box::pin(async move {
            let answered = timeout(within, self.ask(url, request)).await;
            let answer = answered.unwrap_or_else(|_| Err(RemoteError::unreachable("no answer in time")))?;
            room.hold(answer.len())?;
            Ok(answer)
        })
    }
}
