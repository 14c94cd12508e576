//! What the names of other clusters' members stand for.
//!
//! Looking up a name takes a thread for as long as the name server is silent, and nothing can end that earlier. So
//! few names are looked up at once, each by one thread, and what is found, or that nothing is, counts for some
//! seconds for everybody. A name that was found before goes on standing for the same while nobody can tell; not once
//! it is said that there is no such name, because its address may be somebody else's by then.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, Semaphore};
use tokio::time::Instant;

use crate::limits::{
    KNOWN_NAME_FOR, MAX_DOUBTFUL_LOOK_UPS, MAX_KNOWN_NAMES, MAX_LOOK_UPS, NAME_TIMEOUT, OLD_NAME_FOR,
};
use crate::task;

type Found = Result<Arc<[IpAddr]>, Unknown>;

/// Why it is not known what a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unknown {
    /// A sentence.
    pub why: String,
    /// No name server tells now: that it stands for nothing is not said.
    is_passing: bool,
}

impl Unknown {
    fn passing(why: String) -> Self {
        Unknown { why, is_passing: true }
    }

    fn of_error(host: &str, error: &io::Error) -> Self {
        // Of what the system's resolver says only the words are told.
        let (why, words) = (format!("{host}: {error}"), ["temporary failure", "try again"]);
        let is_said = words.iter().any(|words| why.to_lowercase().contains(words));
        Unknown { why, is_passing: is_said || error.kind() == io::ErrorKind::TimedOut }
    }
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Unknown {}
type LookUp = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Finds the addresses of hosts.
pub(super) struct Names {
    look_up: Arc<LookUp>,
    known: Mutex<HashMap<String, Arc<Name>>>,
    turns: Arc<Semaphore>,
    /// Those that were not found, or not in time, have fewer turns: they leave some to all others.
    doubtful_turns: Arc<Semaphore>,
}

#[derive(Default)]
struct Name {
    /// Held by who looks it up.
    turn: Arc<Turn<()>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// What was found last, and when.
    last: Option<(Instant, Found)>,
    /// The last addresses that were found, and when.
    addresses: Option<(Instant, Arc<[IpAddr]>)>,
    is_doubtful: bool,
}

impl Known {
    fn fresh(&self) -> Option<Found> {
        let (since, found) = self.last.as_ref()?;
        (since.elapsed() < KNOWN_NAME_FOR).then(|| found.clone())
    }

    fn old(&self) -> Option<Arc<[IpAddr]>> {
        let (since, addresses) = self.addresses.as_ref()?;
        (since.elapsed() < OLD_NAME_FOR).then(|| addresses.clone())
    }

    fn note(&mut self, found: Found, took: Duration) {
        let now = Instant::now();
        self.is_doubtful = found.is_err() || took > NAME_TIMEOUT;
        if let Ok(addresses) = &found {
            self.addresses = Some((now, addresses.clone()));
        }
        self.last = Some((now, found));
    }
}

impl Names {
    /// Of the system that this runs on.
    pub fn of_system() -> Self {
        Self::new(|host| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect()))
    }

    pub(super) fn new(look_up: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Names {
            look_up: Arc::new(look_up),
            known: Mutex::default(),
            turns: Arc::new(Semaphore::new(MAX_LOOK_UPS)),
            doubtful_turns: Arc::new(Semaphore::new(MAX_DOUBTFUL_LOOK_UPS)),
        }
    }

    /// The addresses of `host`, within [`NAME_TIMEOUT`].
    pub async fn addresses(&self, host: &str) -> Found {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok([address].into());
        }
        let name = self.name(host);
        let found = tokio::time::timeout(NAME_TIMEOUT, self.fresh(host, &name)).await;
        let late = |_| Err(Unknown::passing(format!("no name server says in time what {host} is")));
        found.unwrap_or_else(late).or_else(|unknown| {
            let old = name.known.lock().old().filter(|_| unknown.is_passing);
            old.ok_or(unknown)
        })
    }

    fn name(&self, host: &str) -> Arc<Name> {
        let mut known = self.known.lock();
        if let Some(name) = known.get(host) {
            return name.clone();
        }
        if known.len() >= MAX_KNOWN_NAMES {
            // Whoever waits for one has it in hand.
            known.retain(|_, name| Arc::strong_count(name) > 1 || name.known.lock().fresh().is_some());
            if known.len() >= MAX_KNOWN_NAMES {
                known.retain(|_, name| Arc::strong_count(name) > 1);
            }
        }
        known.entry(host.to_owned()).or_default().clone()
    }

    async fn fresh(&self, host: &str, name: &Arc<Name>) -> Found {
        if let Some(found) = name.known.lock().fresh() {
            return found;
        }
        let turn = name.turn.clone().lock_owned().await;
        let is_doubtful = {
            let known = name.known.lock();
            if let Some(found) = known.fresh() {
                return found;
            }
            known.is_doubtful
        };
        let doubtful_turn = match is_doubtful {
            true => Some(one_of(&self.doubtful_turns).await?),
            false => None,
        };
        let turns = (one_of(&self.turns).await?, doubtful_turn, turn);
        let (look_up, host, name) = (self.look_up.clone(), host.to_owned(), name.clone());
        let found = task::blocking(move || {
            // As long as the thread is taken, also when nobody waits for it any more.
            let _turns = turns;
            let begun = Instant::now();
            let found = look_up(&host).map(Arc::from).map_err(|error| Unknown::of_error(&host, &error));
            name.known.lock().note(found.clone(), begun.elapsed());
            Ok(found)
        });
        found.await.map_err(|error| Unknown::passing(error.to_string()))?
    }
}

async fn one_of(turns: &Arc<Semaphore>) -> Result<tokio::sync::OwnedSemaphorePermit, Unknown> {
    turns.clone().acquire_owned().await.map_err(|error| Unknown::passing(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// A name server that is silent about all but `well`, until what is given is dropped; and how many wait for it.
    fn silent() -> (Names, mpsc::Sender<()>, Arc<AtomicUsize>) {
        let (answer, is_answered) = mpsc::channel::<()>();
        let (is_answered, asked) = (Mutex::new(is_answered), Arc::new(AtomicUsize::new(0)));
        let counted = asked.clone();
        let names = Names::new(move |host| {
            counted.fetch_add(1, Ordering::Relaxed);
            if host != "well" {
                let _ = is_answered.lock().recv();
                return Err(io::Error::other("there is no such host"));
            }
            Ok(vec![HERE])
        });
        (names, answer, asked)
    }

    #[tokio::test]
    async fn however_many_names_are_asked_for_few_threads_wait_for_the_name_server() {
        let (names, answer, asked) = silent();
        let names = Arc::new(names);
        tokio::time::pause();
        for round in 0..3 {
            let asking: Vec<_> = (0..600)
                .map(|number| {
                    let names = names.clone();
                    tokio::spawn(async move { names.addresses(&format!("h{number}.example")).await })
                })
                .collect();
            // Threads that wait keep the clock from going on by itself.
            while !asking.iter().all(|asked| asked.is_finished()) {
                tokio::time::advance(NAME_TIMEOUT).await;
            }
            for asked in asking {
                assert!(asked.await.unwrap().is_err(), "round {round}");
            }
        }
        let asked = asked.load(Ordering::Relaxed);
        assert!(asked <= MAX_LOOK_UPS, "{asked}");
        drop(answer);
    }

    #[tokio::test]
    async fn one_name_is_looked_up_once_for_all_and_what_is_found_counts_for_a_while() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let names = Names::new(move |host| {
            let count = counted.fetch_add(1, Ordering::Relaxed);
            match host {
                "gone" => Err(io::Error::other("there is no such host")),
                "lost" if count > 0 => {
                    Err(io::Error::other("failed to lookup address: Temporary failure in name resolution"))
                }
                _ => Ok(vec![HERE]),
            }
        });
        tokio::time::pause();
        let all = futures_util::future::join_all((0..20).map(|_| names.addresses("lost"))).await;
        assert!(all.iter().all(|found| found.as_deref() == Ok(&[HERE])), "{all:?}");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        for _ in 0..20 {
            assert!(names.addresses("gone").await.unwrap_err().why.contains("no such host"));
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2, "that there is none counts too");
        tokio::time::advance(KNOWN_NAME_FOR).await;
        assert_eq!(names.addresses("lost").await.as_deref(), Ok(&[HERE][..]), "as before");
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        tokio::time::advance(OLD_NAME_FOR).await;
        assert!(names.addresses("lost").await.is_err());
        assert_eq!(names.addresses("::1").await.unwrap()[0].to_string(), "::1");
        assert_eq!(asked.load(Ordering::Relaxed), 4, "an address is no name");
    }

    #[tokio::test]
    async fn a_name_that_was_taken_away_stands_for_nothing() {
        let asked = AtomicUsize::new(0);
        let names = Names::new(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(vec![HERE]),
            1 => Err(io::ErrorKind::TimedOut.into()),
            _ => Err(io::Error::other("failed to lookup address information: Name or service not known")),
        });
        tokio::time::pause();
        for _ in 0..2 {
            assert_eq!(names.addresses("taken").await.as_deref(), Ok(&[HERE][..]));
            tokio::time::advance(KNOWN_NAME_FOR).await;
        }
        assert!(names.addresses("taken").await.is_err());
    }

    #[tokio::test]
    async fn names_that_were_not_found_leave_turns_to_others() {
        let (names, answer, asked) = silent();
        // All fail at once, and are looked up again.
        drop(answer);
        tokio::time::pause();
        for number in 0..MAX_LOOK_UPS {
            assert!(names.addresses(&format!("h{number}")).await.is_err());
        }
        tokio::time::advance(KNOWN_NAME_FOR).await;
        let held: Vec<_> = (0..MAX_DOUBTFUL_LOOK_UPS)
            .map(|_| names.doubtful_turns.clone().try_acquire_owned().unwrap())
            .collect();
        assert!(names.addresses("h0").await.unwrap_err().why.contains("in time"));
        assert_eq!(names.addresses("well").await.as_deref(), Ok(&[HERE][..]));
        drop(held);
        assert_eq!(asked.load(Ordering::Relaxed), MAX_LOOK_UPS + 1);
    }

    #[tokio::test]
    async fn what_is_known_of_names_has_a_bound() {
        let names = Names::new(|_| Ok(vec![HERE]));
        for number in 0..MAX_KNOWN_NAMES + 10 {
            names.name(&format!("h{number}"));
        }
        assert!(names.known.lock().len() <= MAX_KNOWN_NAMES);
    }
}
