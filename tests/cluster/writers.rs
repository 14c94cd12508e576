//! Load: writers at every member, at a pace that a small machine carries.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::oracle::Oracle;

/// Pause between two attempts of one writer: load, not a race for the last cycle.
const PACE: Duration = Duration::from_millis(10);

/// Writers that run until they are stopped.
pub struct Writers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Two writers at each of `urls`: one appends single records and never repeats itself, the other
    /// appends batches with a key and repeats what failed at the next member.
    pub fn start(oracle: &Arc<Oracle>, urls: &[String]) -> Writers {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for home in 0..urls.len() {
            for with_key in [false, true] {
                let oracle = oracle.clone();
                let urls = urls.to_vec();
                let stopped = stopped.clone();
                tasks.spawn(async move {
                    let client = Client::new();
                    let name = format!("writer {home}{}", if with_key { " with keys" } else { "" });
                    let mut turn = 0;
                    while !*stopped.borrow() {
                        if with_key {
                            // Several rounds over the members: enough for an election.
                            let tries: Vec<&str> = (0..2 * urls.len())
                                .map(|try_| urls[(home + try_) % urls.len()].as_str())
                                .collect();
                            oracle.append(&client, &tries, &name, 2 + turn % 4, true).await;
                        } else {
                            oracle.append(&client, &[&urls[home]], &name, 1, false).await;
                        }
                        turn += 1;
                        tokio::time::sleep(PACE).await;
                    }
                });
            }
        }
        Writers { stop, tasks }
    }

    /// Lets every writer finish its attempt.
    pub async fn finish(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer panicked");
        }
    }
}
