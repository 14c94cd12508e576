//! The commands that make, change and end routers.

use std::sync::Arc;

use super::blocks::TimePlace;
use super::command::{PutRouter, SealToken};
use super::outcome::{Outcome, Refusal};
use super::position::Reached;
use super::router_config::{Remote, RouterConfig, Start};
use super::routers::SharedRouter;
use super::topic_config::TopicConfig;
use super::{Applied, Cluster, Missing, SharedTopic, State};
use crate::codec::Malformed;

impl State {
    /// The topic in which a new local router has to find its place.
    pub(super) fn start_topic(&self, put: &PutRouter<'_>) -> Option<Arc<SharedTopic>> {
        let is_new = put.config.is_local() && self.routers.shared.get(put.name).is_none();
        if is_new { self.catalog.get(&put.config.source) } else { None }
    }

    /// Finds where the router starts in `shared` before anything is changed, and keeps that for the command.
    pub(super) fn missing_to_start(
        &mut self,
        start: Start,
        shared: &Arc<SharedTopic>,
    ) -> Result<Missing, Malformed> {
        let topic = shared.read();
        self.planned_start = match start {
            Start::Latest => topic.head_seq,
            Start::Earliest => 0,
            Start::Seq(seq) => seq.min(topic.head_seq),
            Start::Ts(ts_ms) => match topic.locate_time(ts_ms, None)? {
                TimePlace::AtHead => topic.head_seq,
                TimePlace::After(seq) => seq,
                TimePlace::Cold { block_first_seq } => return Ok(Missing::block(shared, block_first_seq)),
            },
        };
        Ok(Missing::default())
    }

    pub(super) fn put_router(&mut self, put: &PutRouter<'_>, source: Option<Arc<SharedTopic>>) -> Applied {
        let result = match self.routers.shared.get(put.name) {
            _ if self.cluster.is_none() => Err(Refusal::NoCluster.into()),
            Some(router) => self.change_router(&router, put),
            None => self.create_router(put, source),
        };
        Applied::of(result.unwrap_or_else(|refused| refused))
    }

    fn create_router(
        &mut self,
        put: &PutRouter<'_>,
        source: Option<Arc<SharedTopic>>,
    ) -> Result<Outcome, Outcome> {
        let config = &put.config;
        // Everything that can refuse comes before anything is done (C-ROUTE-12).
        if config
            .remote
            .as_ref()
            .and_then(|remote| remote.token.as_ref())
            .is_some_and(|it| it.is_placeholder())
        {
            return Err(Refusal::NoStoredToken.into());
        }
        let dest = config.fixed_dest().and_then(|dest| self.catalog.get(dest));
        if config.fixed_dest().is_some() && dest.is_none() && !config.create_dest {
            return Err(Refusal::TopicNotFound.into());
        }
        self.check_cycle(config)?;
        let absent = u64::from(source.is_none()) + u64::from(dest.is_none());
        self.check_max_routers()?;
        self.check_quota(if config.is_local() { absent } else { 0 }, 0)?;

        let mut ensure = |found: Option<Arc<SharedTopic>>, name: &str| {
            found.unwrap_or_else(|| self.create(name, TopicConfig::default()))
        };
        let start = if config.is_local() {
            let is_new = source.is_none();
            let source = ensure(source, &config.source);
            let dest = ensure(dest, &config.dest);
            // What is expired by now is not there to start before.
            let earliest = source.read().earliest_seq - 1;
            let is_earliest = config.start == Start::Earliest;
            let is_time = matches!(config.start, Start::Ts(_));
            let seq = match self.planned_start {
                _ if is_new => 0,
                planned if is_earliest || is_time => planned.max(earliest),
                planned => planned,
            };
            Some(Reached { source_epoch: source.epoch, dest_epoch: dest.epoch, seq, entry: None })
        } else {
            None
        };
        let generation = self.next_epoch;
        self.next_epoch += 1;
        let router = self.routers.create(put.name, generation, config.clone());
        if let Some(start) = start {
            router.write().set_position(&config.source, start);
            self.routers.changed(&router);
        }
        Ok(outcome(true, config, true))
    }

    fn change_router(&mut self, router: &Arc<SharedRouter>, put: &PutRouter<'_>) -> Result<Outcome, Outcome> {
        let known = router.read().config.clone();
        let mut config = put.config.clone();
        if !put.is_start_given {
            config.start = known.start;
        }
        let is_same_place = known.source == config.source
            && known.dest == config.dest
            && known.start == config.start
            && known.is_local() == config.is_local();
        if !is_same_place {
            return Err(Refusal::RepointForbidden.into());
        }
        // One that was allowed to close a cycle no longer is. One that was there before others closed it stays.
        if known.allow_cycle && !config.allow_cycle {
            self.check_cycle(&config)?;
        }
        if let (Some(Remote { token, urls, .. }), Some(stored)) = (&mut config.remote, &known.remote)
            && token.as_ref().is_some_and(|token| token.is_placeholder())
        {
            // Whoever may change where it is sent could otherwise read it there.
            if !urls.iter().all(|url| stored.urls.contains(url)) {
                return Err(Refusal::TokenOfOtherUrls.into());
            }
            *token = stored.token.clone();
        }
        let told = config.clone();
        let relays = |config: &RouterConfig| config.remote.as_ref().map(|remote| remote.relays.clone());
        let (trusts_presented, has_new_relays) =
            (relays(&config) == Some(None), relays(&config) != relays(&known));
        let is_changed = {
            let mut router = router.write();
            let is_other = router.reconfigure(config);
            let is_trusted = match trusts_presented {
                true => router.trust_presented(),
                false => has_new_relays && router.look_again(),
            };
            if is_trusted && !is_other {
                router.renew_config();
            }
            is_other || is_trusted
        };
        if is_changed {
            self.routers.reconfigured(router);
        }
        Ok(outcome(false, &told, is_changed))
    }

    /// C-ROUTE-10.
    fn check_cycle(&self, config: &RouterConfig) -> Result<(), Outcome> {
        if config.allow_cycle || !config.is_local() {
            return Ok(());
        }
        let Some(way_back) = self.routers.shared.way(&config.dest, &config.source) else { return Ok(()) };
        let mut cycle = vec![config.source.clone()];
        cycle.extend(way_back);
        Err(Outcome::RouterCycle { cycle })
    }

    pub(super) fn delete_router(&mut self, name: &str) -> Applied {
        Applied::of(Outcome::RouterDeleted { deleted: self.routers.delete(name) })
    }

    pub(super) fn pause_router(&mut self, name: &str, pause: bool) -> Applied {
        let Some(router) = self.routers.shared.get(name) else {
            return Applied::of(Refusal::RouterNotFound.into());
        };
        let was_paused = std::mem::replace(&mut router.write().is_paused, pause);
        if was_paused != pause {
            self.routers.reconfigured(&router);
        }
        Applied::of(Outcome::RouterPaused { is_paused: pause })
    }

    pub(super) fn skip_record(&mut self, name: &str, source: &str, seq: u64) -> Applied {
        let Some(router) = self.routers.shared.get(name) else {
            return Applied::of(Refusal::RouterNotFound.into());
        };
        let skipped = {
            let mut router = router.write();
            if !router.config.mirrors(source) {
                return Applied::of(Refusal::NotMirrored.into());
            }
            match router.skip(source, seq) {
                None => return Applied::of(Refusal::TooManySkips.into()),
                Some(is_to_come) => {
                    // Whoever waits to look at the record again need not.
                    router.renew_config();
                    is_to_come
                }
            }
        };
        self.routers.reconfigured(&router);
        Applied::of(Outcome::RecordSkipped { skipped })
    }

    pub(super) fn seal_token(&mut self, seal: &SealToken) -> Applied {
        if let Some(router) = self.routers.shared.of_generation(seal.generation) {
            let is_changed = {
                let mut router = router.write();
                let mut config = (*router.config).clone();
                let is_same = config.digest() == seal.config_digest;
                let token = config.remote.as_mut().and_then(|remote| remote.token.as_mut());
                match token.filter(|_| is_same) {
                    None => false,
                    Some(token) => {
                        *token = seal.token.clone();
                        router.reconfigure(config)
                    }
                }
            };
            if is_changed {
                self.routers.reconfigured(&router);
            }
        }
        Applied::of(Outcome::TokenSealed)
    }

    /// Ends the routers that go with `topic`; gives their names, in order (C-TOPIC-09).
    pub(super) fn remove_routers_of(&mut self, topic: &str) -> Vec<String> {
        let names = self.routers.shared.naming(topic);
        names.iter().filter(|it| self.routers.delete(&it.name)).map(|it| it.name.to_string()).collect()
    }

    /// The first identity stays: a cluster has one.
    pub(super) fn set_cluster(&mut self, cluster: &Cluster) -> Applied {
        if self.cluster.is_none() {
            self.cluster = Some(cluster.clone());
        }
        Applied::of(Outcome::ClusterSet)
    }
}

fn outcome(created: bool, config: &RouterConfig, is_changed: bool) -> Outcome {
    let has_token = config.remote.as_ref().is_some_and(|remote| remote.token.is_some());
    Outcome::RouterPut { created, start: config.start, has_token, is_changed }
}
