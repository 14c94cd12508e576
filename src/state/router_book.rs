//! What the state keeps of routers beside the routers themselves: what no checkpoint has seen, and their digest.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::checkpoint_form::Key;
use super::router::{Router, RouterKey};
use super::router_config::RouterConfig;
use super::routers::{Routers, SharedRouter};
use crate::codec::Malformed;
use crate::storage::Change;

#[derive(Default)]
pub(super) struct RouterBook {
    pub shared: Arc<Routers>,
    /// By generation.
    dirty: BTreeMap<u64, Arc<SharedRouter>>,
    /// Routers whose deletion no checkpoint has seen.
    deleted: Vec<Arc<SharedRouter>>,
    /// Sum of the digests of all routers, but for what `dirty` and `deleted` have changed.
    digest: u64,
    /// Parts of configurations whose heads are still to come, while a checkpoint is read.
    configs: BTreeMap<u64, Vec<u8>>,
}

impl RouterBook {
    pub fn create(&mut self, name: &str, generation: u64, config: RouterConfig) -> Arc<SharedRouter> {
        let router = self.shared.insert(Router::new(name.into(), generation, config));
        self.shared.configuration_changed(generation);
        self.changed(&router);
        router
    }

    /// Notes that the next checkpoint has something to say of `router`.
    pub fn changed(&mut self, router: &Arc<SharedRouter>) {
        self.dirty.insert(router.generation, router.clone());
        self.shared.recount(router);
    }

    /// As [`RouterBook::changed`], of what whoever runs the routers has to know.
    pub fn reconfigured(&mut self, router: &Arc<SharedRouter>) {
        self.changed(router);
        self.shared.configuration_changed(router.generation);
    }

    /// `false` if there is no such router.
    pub fn delete(&mut self, name: &str) -> bool {
        let Some(router) = self.shared.remove(name) else { return false };
        self.dirty.remove(&router.generation);
        self.shared.recount(&router);
        self.shared.configuration_changed(router.generation);
        self.deleted.push(router);
        true
    }

    /// Digest of all routers. Looks only at those that changed since the last checkpoint was cut.
    pub fn digest(&mut self) -> u64 {
        for router in self.deleted.iter().chain(self.dirty.values()) {
            let (before, now) = router.summed_digest();
            self.digest = self.digest.wrapping_sub(before).wrapping_add(now);
        }
        self.digest
    }

    pub fn take_changes(&mut self, changes: &mut Vec<Change>) {
        self.digest();
        for router in std::mem::take(&mut self.deleted) {
            let keys = router.read();
            changes
                .extend(keys.stored_keys().map(|key| (Key::Router(router.generation, key).encode(), None)));
        }
        for (generation, router) in std::mem::take(&mut self.dirty) {
            router.write().take_changes(&mut |key, value| {
                changes.push((Key::Router(generation, key).encode(), value));
            });
        }
    }

    /// Takes in one value of a checkpoint. They come in key order: configuration, head, positions.
    pub fn restore(&mut self, generation: u64, key: RouterKey, value: &[u8]) -> Result<(), Malformed> {
        match key {
            RouterKey::Config(_) => self.configs.entry(generation).or_default().extend_from_slice(value),
            RouterKey::Head => {
                let config = self.configs.remove(&generation).unwrap_or_default();
                let router = self.shared.insert(Router::restore(generation, &config, value)?);
                self.changed(&router);
            }
            RouterKey::Position(ordinal) => {
                let router = self.shared.of_generation(generation);
                let router = router.ok_or(Malformed("position of a router: there is no such router"))?;
                router.write().restore_position(ordinal, value)?;
            }
        }
        Ok(())
    }

    /// Ends a restore.
    pub fn restored(&mut self) {
        self.digest();
        for router in std::mem::take(&mut self.dirty).values() {
            self.shared.recount(router);
        }
        self.configs.clear();
        self.shared.all_changed();
    }

    /// Forgets everything, in the routers that readers see too.
    pub fn reset(&mut self) {
        self.shared.clear();
        *self = RouterBook { shared: self.shared.clone(), ..RouterBook::default() };
    }
}
