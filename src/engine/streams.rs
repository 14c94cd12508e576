//! Places of open streams: SSE and WebSocket connections (C-LIMIT-07).

use std::sync::Arc;

use tokio::sync::watch;

use super::Engine;
use crate::error::Error;

/// Counts the open streams of one member.
pub(super) struct Streams {
    /// 0: any number.
    max: usize,
    open: Arc<watch::Sender<usize>>,
}

/// A place among the open streams; dropping it gives it back.
#[must_use]
pub struct StreamPlace {
    open: Arc<watch::Sender<usize>>,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open -= 1);
    }
}

impl Streams {
    pub fn new(max: usize) -> Self {
        Streams { max, open: Arc::new(watch::Sender::new(0)) }
    }

    fn enter(&self) -> Result<StreamPlace, Error> {
        let has_entered = self.open.send_if_modified(|open| {
            let has_room = self.max == 0 || *open < self.max;
            *open += has_room as usize;
            has_room
        });
        if has_entered {
            return Ok(StreamPlace { open: self.open.clone() });
        }
        Err(Error::over_limit("max_sse_connections", self.max as u64))
    }
}

impl Engine {
    /// Takes a place for a stream. Errors: `throttled` if all are taken.
    pub fn enter_stream(&self) -> Result<StreamPlace, Error> {
        self.inner.streams.enter()
    }

    /// How many streams are open.
    pub fn stream_count(&self) -> usize {
        *self.inner.streams.open.borrow()
    }

    /// Returns once no stream is open.
    pub async fn streams_ended(&self) {
        let mut open = self.inner.streams.open.subscribe();
        let _ = open.wait_for(|open| *open == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_streams_as_allowed() {
        // C-LIMIT-07, C-LIMIT-12
        let streams = Streams::new(2);
        let first = streams.enter().unwrap();
        let _second = streams.enter().unwrap();
        assert_eq!(streams.enter().err(), Some(Error::over_limit("max_sse_connections", 2)));
        drop(first);
        let _third = streams.enter().unwrap();
        let unlimited = Streams::new(0);
        let _places: Vec<_> = (0..10).map(|_| unlimited.enter().unwrap()).collect();
        assert_eq!(*unlimited.open.borrow(), 10);
    }
}
