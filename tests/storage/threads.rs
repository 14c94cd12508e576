//! The log as it runs in production: a real disk, and the writer on a thread of its own.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use antiphon::storage::*;

use crate::rig::{at_once, entry};

#[tokio::test]
async fn the_writer_thread_confirms_in_order_and_finishes_what_is_queued_when_closed() {
    let dir = tempfile::tempdir().expect("temp dir");
    let dir = dir.path().join("log");
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let (log, writer) = Log::open(Arc::new(RealDisk), &dir, options.clone()).expect("open");
    let thread = writer.run_on_thread().expect("spawn");
    log.save_vote(Vote { term: 1, node_id: 7, committed: true }).await.expect("vote");
    let next = Arc::new(AtomicU64::new(0));
    for index in 0..500 {
        let next = next.clone();
        let done: Done = Box::new(move |outcome| {
            outcome.expect("synced");
            assert_eq!(next.swap(index + 1, Relaxed), index);
        });
        log.append(vec![entry(1, index, 300)], done).await.expect("append");
    }
    log.wait_synced(250).await.expect("synced");
    assert!(log.synced_id().is_some_and(|synced| synced.index >= 250));
    log.close();
    assert!(log.append(vec![entry(1, 500, 1)], Box::new(|_| ())).await.is_err());
    thread.join().expect("the writer ends");
    assert_eq!(next.load(Relaxed), 500);
    assert_eq!(log.entries(0..500, usize::MAX).expect("reads go on").len(), 500);
    assert!(log.wait_synced(500).await.is_err(), "nothing more will ever be synced");

    let (again, _writer) = Log::open(Arc::new(RealDisk), &dir, options).expect("reopen");
    assert_eq!(again.vote(), log.vote());
    assert_eq!(
        again.entries(0..u64::MAX, usize::MAX).expect("read"),
        log.entries(0..500, usize::MAX).expect("read")
    );
}

/// Kind of the last frame of a log with one segment, and where it ends.
fn last_frame(dir: &std::path::Path) -> Option<(frame::FrameKind, usize)> {
    let names = RealDisk.list(dir).expect("list");
    let name = names.iter().rfind(|name| name.ends_with(".seg")).expect("a segment");
    let bytes = std::fs::read(dir.join(name)).expect("read");
    let (mut at, mut last) = (SEGMENT_HEADER_BYTES as usize, None);
    while let Ok(found) = frame::decode(&bytes[at..]) {
        at += found.total_bytes();
        last = Some((found.head.kind, at));
    }
    last
}

#[tokio::test]
async fn a_quiet_writer_leaves_one_witness_of_the_last_group() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (log, writer) = Log::open(Arc::new(RealDisk), dir.path(), LogOptions::default()).expect("open");
    let thread = writer.run_on_thread().expect("spawn");
    let mut end = 0;
    for index in 0..2 {
        // Until it is written the witness of the group before it is the last frame.
        let (synced, is_synced) = tokio::sync::oneshot::channel();
        let callback = Box::new(move |outcome| drop(synced.send(outcome)));
        log.append(vec![entry(1, index, 300)], callback).await.expect("append");
        is_synced.await.expect("the callback is called").expect("synced");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        // Another one than that of the group before.
        end = loop {
            match last_frame(dir.path()) {
                Some((frame::FrameKind::Witness, at)) if at > end => break at,
                _ => assert!(std::time::Instant::now() < deadline, "no witness"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        };
    }
    let before = last_frame(dir.path());
    log.close();
    thread.join().expect("the writer ends");
    assert_eq!(last_frame(dir.path()), before, "there was nothing left to speak for");

    let (log, writer) = Log::open(Arc::new(RealDisk), dir.path(), LogOptions::default()).expect("reopen");
    log.append(vec![entry(1, 2, 5)], Box::new(|_| ())).await.expect("append");
    log.close();
    writer.run_on_thread().expect("spawn").join().expect("the writer ends");
    let last = last_frame(dir.path());
    assert_eq!(last.map(|(kind, _)| kind), Some(frame::FrameKind::Witness), "closing is quiet too");
}

#[test]
fn the_writer_thread_ends_when_the_last_handle_is_dropped() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (log, writer) = Log::open(Arc::new(RealDisk), dir.path(), LogOptions::default()).expect("open");
    let thread = writer.run_on_thread().expect("spawn");
    let clone = log.clone();
    drop(log);
    at_once(clone.append(vec![entry(1, 0, 10)], Box::new(|outcome| outcome.expect("synced"))))
        .expect("append");
    drop(clone);
    thread.join().expect("the writer ends");
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nobody_waiting() {
    let disk = SimDisk::new(1);
    let (log, writer) = Log::open(Arc::new(disk), &crate::rig::dir(), LogOptions::default()).expect("open");
    let waiting = {
        let log = log.clone();
        tokio::spawn(async move { log.save_vote(Vote { term: 1, node_id: 1, committed: false }).await })
    };
    tokio::task::yield_now().await;
    drop(writer);
    assert!(waiting.await.expect("joined").is_err());
    assert!(log.wait_synced(0).await.is_err());
}

#[tokio::test]
async fn a_writer_can_run_as_a_task() {
    let disk = SimDisk::new(1);
    let (log, writer) = Log::open(Arc::new(disk), &crate::rig::dir(), LogOptions::default()).expect("open");
    let task = tokio::spawn(writer.run_as_task());
    log.append(vec![entry(1, 0, 10)], Box::new(|_| ())).await.expect("append");
    log.wait_synced(0).await.expect("synced");
    log.close();
    task.await.expect("the writer ends");
}
