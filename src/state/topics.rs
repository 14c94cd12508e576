//! Commands that make, configure and delete topics.

use std::sync::Arc;

use super::{Applied, Outcome, Refusal, SharedTopic, State, Topic, TopicConfig};
use crate::codec::Malformed;

impl State {
    pub(super) fn create(&mut self, name: &str, config: TopicConfig) -> Arc<SharedTopic> {
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        let topic = Topic::with_blocks(name.into(), epoch, config, self.block_bytes);
        let shared = self.catalog.insert(topic);
        self.dirty_topics.insert(epoch, shared.clone());
        shared
    }

    pub(super) fn put_topic(
        &mut self,
        name: &str,
        config: &TopicConfig,
        existing: Option<Arc<SharedTopic>>,
    ) -> Result<Applied, Malformed> {
        let outcome = |outcome| Ok(Applied::of(outcome));
        let Some(shared) = existing else {
            if let Err(refusal) = self.check_quota(1, 0) {
                return outcome(Outcome::Refused(refusal));
            }
            self.create(name, config.clone());
            return outcome(Outcome::TopicPut { created: true, config: config.clone() });
        };
        let mut topic = shared.write();
        let existing = topic.config.topic_type;
        if existing != config.topic_type {
            return outcome(Outcome::Refused(Refusal::TypeDiffers {
                existing,
                requested: config.topic_type,
            }));
        }
        let due_before = topic.due_ms();
        if topic.reconfigure(config.clone()) {
            topic.expire(self.time_ms, &mut self.freed)?;
            topic.keep_within_caps(&mut self.freed)?;
            self.due.update(&shared, due_before, topic.due_ms());
            self.dirty_topics.insert(shared.epoch, shared.clone());
        }
        outcome(Outcome::TopicPut { created: false, config: config.clone() })
    }

    pub(super) fn delete_topic(
        &mut self,
        name: &str,
        if_empty: bool,
        existing: Option<Arc<SharedTopic>>,
    ) -> Applied {
        let Some(shared) = existing else {
            return Applied::of(Outcome::TopicDeleted { deleted: false, routers_removed: Vec::new() });
        };
        let (count, due_ms) = {
            let topic = shared.read();
            (topic.count, topic.due_ms())
        };
        if if_empty && count > 0 {
            return Applied::of(Outcome::Refused(Refusal::NotEmpty { count }));
        }
        self.catalog.remove(name);
        self.due.update(&shared, due_ms, None);
        self.dirty_topics.remove(&shared.epoch);
        // Whatever it held: a topic of ten million records goes as quickly as an empty one.
        self.deleted.push(shared.clone());
        let routers_removed = self.remove_routers_of(name);
        Applied::touching(Outcome::TopicDeleted { deleted: true, routers_removed }, shared)
    }
}
