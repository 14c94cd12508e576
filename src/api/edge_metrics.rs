//! What the edge counts of its own.

use std::sync::Arc;

use prometheus::{IntCounter, IntGauge, Registry};

use super::change::ChangeLines;
use super::request_metrics::RequestMetrics;
use crate::auth::Keys;
use crate::telemetry::metrics::{
    CLIENT_CONNECTIONS, Exposition, MAX_CLIENT_CONNECTIONS, REFUSED_CLIENT_CONNECTIONS,
};

/// Counts of one member's edge.
pub struct EdgeMetrics {
    pub requests: RequestMetrics,
    /// Connections that are open, and how many may be.
    pub connections: IntGauge,
    pub max_connections: IntGauge,
    /// Connections that were not taken.
    pub refused_connections: IntCounter,
    /// What is told of changes.
    pub changes: ChangeLines,
    registry: Registry,
}

impl EdgeMetrics {
    /// Also shows what `keys` counts.
    pub fn new(keys: &Keys) -> Arc<Self> {
        let metrics = EdgeMetrics {
            requests: RequestMetrics::default(),
            connections: CLIENT_CONNECTIONS.gauge(),
            max_connections: MAX_CLIENT_CONNECTIONS.gauge(),
            refused_connections: REFUSED_CLIENT_CONNECTIONS.counter(),
            changes: ChangeLines::default(),
            registry: Registry::new(),
        };
        let all: [Box<dyn prometheus::core::Collector>; 4] = [
            Box::new(metrics.connections.clone()),
            Box::new(metrics.max_connections.clone()),
            Box::new(metrics.refused_connections.clone()),
            Box::new(keys.refusals().counters().clone()),
        ];
        for counted in all {
            // Their names differ, which is all that can be wrong with them.
            metrics.registry.register(counted).expect("a name that is not taken");
        }
        Arc::new(metrics)
    }

    /// Shows all of them.
    pub fn put(&self, out: &mut Exposition) {
        self.requests.put(out);
        out.extend(self.registry.gather());
    }
}
