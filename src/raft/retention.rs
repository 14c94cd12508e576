//! What holds the log's tail back, and what of it may go: one decision for the whole member.
//!
//! The log would be given up behind the checkpoint but for its last entries: so many, and so many bytes of them; with
//! little room on the disk none but those in the file that is being written. Five things hold it back, each for a
//! while and none for ever:
//!
//! 1. the **checkpoint**: what it does not cover is needed to start again;
//! 2. the **export** of a member that has no others, for the same reason;
//! 3. a **member** that lacks entries and gets on, or did within the patience. Answering is not getting on: one
//!    whose disk is full or whose entries get lost on the way answers as ever. One that has not been heard since
//!    it is known may lack everything, for as long;
//! 4. a **transfer** of the state, as long as its pages flow: the member must find that what it gets suffices, so
//!    no newer snapshot is named and the log behind it stays;
//! 5. a member that **starts** from the state that it was sent: its place in the log is kept until it is heard
//!    there, or for the patience.
//!
//! Two bounds stand above that. A member that gets on, but slower than the others write, is left to a transfer
//! once the log kept for it is dearer than the state. And with little room on the disk nobody is waited for
//! longer than a start takes: one member's trouble must not become everybody's.
//!
//! Nothing here knows openraft, a clock or a lock. `upkeep` gathers the [`Standing`] and carries out the
//! [`Decision`].
use std::time::Duration;

use tokio::time::Instant;

use super::types::NodeId;
use crate::limits::{
    MAX_LAG_LOG_BYTES, MAX_LATE_RECORDS, OUT_OF_ROOM_PATIENCE, SHORT_OF_ROOM_PATIENCE, TRANSFER_IDLE_AFTER,
};

/// What the log keeps of itself, by the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogTail {
    /// What it keeps in any case is bounded by both.
    pub entries: u64,
    pub bytes: u64,
    /// How long a member without progress is waited for.
    pub patience: Duration,
}

/// All that the decision rests on, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    pub applied_index: u64,
    /// The last entry that the checkpoint on disk covers.
    pub saved_index: u64,
    /// The last entry that openraft knows a snapshot of: it purges nothing beyond.
    pub named_index: u64,
    pub purged_index: u64,
    pub tail: LogTail,
    /// The last entry of the files that are beyond the bytes of the tail, or beyond the file that is being written
    /// while room is short.
    pub surplus_index: u64,
    /// Where nobody else has the state.
    pub export: Option<Exported>,
    pub others: Vec<Other>,
    pub transfers: Vec<Transfer>,
    pub room: Room,
}

impl Default for LogTail {
    fn default() -> Self {
        LogTail { entries: 0, bytes: u64::MAX, patience: Duration::ZERO }
    }
}

/// The state that a member without others has a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// The last entry that it covers.
    pub index: u64,
    /// What had been applied some time before: a delete that was under way when it was made may need what was
    /// written behind this.
    pub settled_index: u64,
}

/// Another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Other {
    pub node_id: NodeId,
    /// Up to where it has applied and synced the log, as it said last; `None` if it was never heard.
    pub durable_index: Option<u64>,
    /// How long it has lacked something without getting on, or been known without being heard.
    pub stuck_for: Duration,
}

/// A state on its way to another member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    pub to: NodeId,
    /// The member will go on by the log behind this entry, or a later one.
    pub index: u64,
    pub stage: Stage,
    /// How long nothing has been heard of it.
    pub idle_for: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The member fetches page after page.
    Fetching,
    /// It has everything, and starts from it.
    Starting,
}

/// What the disk has room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the log that are not given up yet, and of the records below it that topics still have.
    pub chain_bytes: u64,
    pub kept_bytes: u64,
    /// There is little, and giving up the log makes more of it: who lags is not waited for as long as else.
    pub is_short: bool,
    /// There is none for records.
    pub is_full: bool,
}

/// What may be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Up to where the log may be purged; `None` if that is not worth it, or nothing.
    pub purge_upto: Option<u64>,
    /// Whether the checkpoint on disk may be named a snapshot, and is worth it.
    pub may_name: bool,
    /// Whether all files without live entries may be freed; a transfer under way pins those that it reads.
    pub may_free: bool,
    /// Whether states under way must be given up.
    pub must_end_transfers: bool,
    pub held: Option<Hold>,
}

/// The log is longer than it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub by: Holder,
    /// The entries behind this one are kept.
    pub index: u64,
    /// How many that are beyond what the log keeps in any case.
    pub entries: u64,
}

/// What holds the log back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    Checkpoint,
    Export,
    Member(NodeId),
    Transfer(NodeId),
    Start(NodeId),
}

impl Holder {
    /// All reasons, as metrics and the cluster view name them.
    pub const REASONS: [&str; 5] = ["checkpoint", "export", "member", "transfer", "start"];

    pub fn reason(self) -> &'static str {
        let [checkpoint, export, member, transfer, start] = Self::REASONS;
        match self {
            Holder::Checkpoint => checkpoint,
            Holder::Export => export,
            Holder::Member(_) => member,
            Holder::Transfer(_) => transfer,
            Holder::Start(_) => start,
        }
    }

    /// The member that it is about.
    pub fn member(self) -> Option<NodeId> {
        match self {
            Holder::Checkpoint | Holder::Export => None,
            Holder::Member(node_id) | Holder::Transfer(node_id) | Holder::Start(node_id) => Some(node_id),
        }
    }
}

/// How long the place of a member is kept that starts from the state it was sent. Longer than a start takes, even
/// where the patience is short.
pub fn start_patience(patience: Duration) -> Duration {
    patience.max(TRANSFER_IDLE_AFTER)
}

/// Decides what may go, and says what holds back the rest.
pub fn decide(standing: &Standing) -> Decision {
    let Standing { saved_index, named_index, purged_index, tail, surplus_index, room, .. } = *standing;
    // Rarely enough that naming snapshots costs nothing, often enough that what is kept stays near its size.
    let stride = (tail.entries / 16).max(1);
    let behind = |index: u64| index.saturating_sub(tail.entries).max(index.min(surplus_index));
    // A file is worth it, however few entries it has.
    let is_surplus = surplus_index > purged_index;

    let must_end_transfers = room.is_full;
    let holding = standing.transfers.iter().filter(|transfer| match transfer.stage {
        _ if must_end_transfers => false,
        Stage::Fetching => transfer.idle_for < TRANSFER_IDLE_AFTER,
        Stage::Starting => transfer.idle_for < start_patience(tail.patience),
    });
    let holding: Vec<&Transfer> = holding.collect();
    let transfer_limits = holding.iter().map(|transfer| {
        let holder = match transfer.stage {
            Stage::Fetching => Holder::Transfer(transfer.to),
            Stage::Starting => Holder::Start(transfer.to),
        };
        // What is named stays, so nothing behind it goes.
        (transfer.index.min(behind(named_index)), holder)
    });
    let member_limits = standing.others.iter().filter_map(|other| {
        // One that lacks what is purged already needs a state in any case.
        let index = other.durable_index.unwrap_or(purged_index);
        (is_waited_for(standing, other) && index >= purged_index)
            .then_some((index, Holder::Member(other.node_id)))
    });
    let own_limits = [
        Some((behind(saved_index), Holder::Checkpoint)),
        standing.export.map(|export| {
            let by_entries = export.index.saturating_sub(tail.entries.min(MAX_LATE_RECORDS));
            let settled_index = if is_surplus { export.settled_index.min(export.index) } else { 0 };
            (by_entries.max(settled_index), Holder::Export)
        }),
    ];
    let limits = own_limits.into_iter().flatten().chain(member_limits).chain(transfer_limits);
    // Of several that hold it equally the first is named.
    let Some((limit, by)) = limits.min_by_key(|(limit, _)| *limit) else { return Decision::default() };

    // What openraft knows a snapshot of by now: the one that is named next is for the next round.
    let upto = limit.min(behind(named_index));
    let entries = behind(standing.applied_index).saturating_sub(limit);
    Decision {
        purge_upto: (upto >= purged_index.saturating_add(if is_surplus { 1 } else { stride }))
            .then_some(upto),
        may_name: holding.is_empty()
            && (saved_index >= named_index.saturating_add(stride)
                || named_index < surplus_index.min(saved_index)),
        may_free: holding.iter().all(|transfer| transfer.stage != Stage::Fetching),
        must_end_transfers,
        held: (entries > stride || limit < surplus_index.min(standing.applied_index)).then_some(Hold {
            by,
            index: limit,
            entries,
        }),
    }
}

fn is_waited_for(standing: &Standing, other: &Other) -> bool {
    let Room { chain_bytes, kept_bytes, is_short, is_full } = standing.room;
    let entries = standing.applied_index.saturating_sub(standing.purged_index);
    // Of the log's bytes those that are there beyond what is kept in any case, as if all entries were alike.
    let beyond = u128::from(entries.saturating_sub(standing.tail.entries));
    let beyond_bytes = u128::from(chain_bytes) * beyond / u128::from(entries.max(1));
    let lag_bytes = beyond_bytes.max(u128::from(chain_bytes.saturating_sub(standing.tail.bytes)));
    // Where topics have much, a state is dear too.
    let is_too_dear = lag_bytes > u128::from(MAX_LAG_LOG_BYTES.max(kept_bytes));
    let patience = match () {
        () if is_short && is_full => standing.tail.patience.min(OUT_OF_ROOM_PATIENCE),
        () if is_short => standing.tail.patience.min(SHORT_OF_ROOM_PATIENCE),
        () => standing.tail.patience,
    };
    other.stuck_for < patience && !is_too_dear
}

/// How another member gets on.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    highest_index: u64,
    last: Instant,
}

impl Progress {
    pub fn new(now: Instant) -> Self {
        Self { highest_index: 0, last: now }
    }

    /// The member said up to where it has everything; `needed_index`: what there is to have.
    pub fn heard(&mut self, durable_index: u64, needed_index: u64, now: Instant) {
        // After a start it applies again what it had, which is no progress; nor is anything to be had twice.
        if durable_index > self.highest_index || durable_index >= needed_index {
            self.last = now;
        }
        self.highest_index = self.highest_index.max(durable_index);
    }

    /// How long it has not got on.
    pub fn stuck_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(600);
    const SECOND: Duration = Duration::from_secs(1);

    /// A leader in the midst of writes with nothing in the way: two members that are near.
    fn usual() -> Standing {
        Standing {
            applied_index: 10_000,
            saved_index: 9_990,
            named_index: 9_900,
            purged_index: 5_000,
            tail: LogTail { entries: 160, patience: PATIENCE, ..LogTail::default() },
            others: vec![other(2, 9_995, SECOND), other(3, 9_980, SECOND)],
            ..Standing::default()
        }
    }

    fn other(node_id: NodeId, durable_index: u64, stuck_for: Duration) -> Other {
        Other { node_id, durable_index: Some(durable_index), stuck_for }
    }

    fn transfer(stage: Stage, idle_for: Duration) -> Transfer {
        Transfer { to: 3, index: 9_920, stage, idle_for }
    }

    fn held_by(decision: &Decision) -> Option<Holder> {
        decision.held.map(|hold| hold.by)
    }

    #[test]
    fn nothing_in_the_way_keeps_the_last_entries_and_no_more() {
        let decision = decide(&usual());
        let expected = Decision {
            purge_upto: Some(9_740),
            may_name: true,
            may_free: true,
            must_end_transfers: false,
            held: None,
        };
        assert_eq!(decision, expected);
    }

    #[test]
    fn less_than_a_stride_is_not_worth_it() {
        let near = Standing { purged_index: 9_731, saved_index: 9_909, ..usual() };
        let decision = decide(&near);
        assert_eq!((decision.purge_upto, decision.may_name), (None, false));
    }

    #[test]
    fn a_checkpoint_that_stands_still_holds_what_it_does_not_cover() {
        let stalled = Standing { saved_index: 6_000, named_index: 6_000, ..usual() };
        let decision = decide(&stalled);
        assert_eq!(decision.purge_upto, Some(5_840));
        assert_eq!(decision.held, Some(Hold { by: Holder::Checkpoint, index: 5_840, entries: 4_000 }));
    }

    #[test]
    fn a_member_without_others_keeps_what_its_export_lacks() {
        let export = Some(Exported { index: 7_160, settled_index: 6_500 });
        let mut alone = Standing { export, others: Vec::new(), ..usual() };
        let decision = decide(&alone);
        assert_eq!(decision.purge_upto, Some(7_000));
        assert_eq!(held_by(&decision), Some(Holder::Export));
        // Of a few large ones nothing must be left but what a delete may need.
        alone.tail.entries = 200_000;
        assert_eq!(decide(&alone).purge_upto, None);
        alone.surplus_index = 9_000;
        let decision = decide(&alone);
        assert_eq!((decision.purge_upto, held_by(&decision)), (Some(6_500), Some(Holder::Export)));
    }

    #[test]
    fn few_entries_of_many_bytes_go_too() {
        // Contract section 26: writes work again once there is room.
        let mut large = usual();
        large.tail.entries = 200_000;
        assert_eq!(decide(&large), Decision { may_free: true, ..Decision::default() });
        large.surplus_index = 8_000;
        assert_eq!(
            decide(&large),
            Decision { purge_upto: Some(8_000), may_free: true, ..Decision::default() }
        );
        // Files that are younger than what openraft knows of, which it is told at once.
        (large.named_index, large.purged_index) = (7_000, 6_995);
        let decision = decide(&large);
        assert_eq!((decision.purge_upto, decision.may_name, decision.held), (Some(7_000), true, None));
        (large.named_index, large.purged_index) = (9_990, 8_000);
        assert_eq!(decide(&large), Decision { may_free: true, ..Decision::default() });
    }

    #[test]
    fn who_holds_bytes_is_told_however_few_entries_they_are() {
        let mut large = usual();
        (large.tail.entries, large.surplus_index) = (200_000, 8_000);
        large.saved_index = 7_990;
        assert_eq!(decide(&large).held, Some(Hold { by: Holder::Checkpoint, index: 7_990, entries: 10 }));
        large.saved_index = 9_990;
        large.others[1] = other(3, 6_000, SECOND);
        let held = Some(Hold { by: Holder::Member(3), index: 6_000, entries: 2_000 });
        assert_eq!((decide(&large).purge_upto, decide(&large).held), (Some(6_000), held));
        // What is kept in any case is not for it, and the rest has its bound.
        large.tail.bytes = 1 << 30;
        large.room.chain_bytes = MAX_LAG_LOG_BYTES + (1 << 30);
        assert_eq!(held_by(&decide(&large)), Some(Holder::Member(3)));
        large.room.chain_bytes += 1;
        assert_eq!((decide(&large).purge_upto, decide(&large).held), (Some(8_000), None));
    }

    #[test]
    fn a_member_that_lags_is_waited_for_as_long_as_the_patience_lasts() {
        let mut lagging = usual();
        lagging.others[1] = other(3, 6_000, PATIENCE - SECOND);
        let decision = decide(&lagging);
        assert_eq!(decision.purge_upto, Some(6_000));
        assert_eq!(decision.held, Some(Hold { by: Holder::Member(3), index: 6_000, entries: 3_840 }));

        lagging.others[1].stuck_for = PATIENCE;
        assert_eq!(decide(&lagging), decide(&usual()));
    }

    #[test]
    fn a_member_that_was_never_heard_may_lack_everything_for_as_long() {
        let mut starting = usual();
        starting.others[1] = Other { node_id: 3, durable_index: None, stuck_for: SECOND };
        let decision = decide(&starting);
        assert_eq!((decision.purge_upto, held_by(&decision)), (None, Some(Holder::Member(3))));
        starting.others[1].stuck_for = PATIENCE;
        assert_eq!(decide(&starting), decide(&usual()));
    }

    #[test]
    fn a_member_that_lacks_what_is_purged_holds_nothing() {
        let mut lost = usual();
        lost.others[1] = other(3, 4_999, SECOND);
        assert_eq!(decide(&lost), decide(&usual()));
        lost.others[1] = other(3, 5_000, SECOND);
        assert_eq!(held_by(&decide(&lost)), Some(Holder::Member(3)));
    }

    #[test]
    fn a_member_is_left_to_a_transfer_when_the_log_for_it_is_dearer_than_the_state() {
        let mut slow = usual();
        slow.others[1] = other(3, 6_000, SECOND);
        slow.room = Room { chain_bytes: MAX_LAG_LOG_BYTES, ..Room::default() };
        assert_eq!(held_by(&decide(&slow)), Some(Holder::Member(3)));
        slow.room.chain_bytes = 2 * MAX_LAG_LOG_BYTES;
        assert_eq!(decide(&slow).purge_upto, decide(&usual()).purge_upto);
        assert_eq!(held_by(&decide(&slow)), None);
        slow.room.kept_bytes = 2 * MAX_LAG_LOG_BYTES;
        assert_eq!(held_by(&decide(&slow)), Some(Holder::Member(3)));
        // What is kept in any case is not for it.
        slow.purged_index = 5_900;
        slow.tail.entries = 4_000;
        slow.room = Room { chain_bytes: 16 * MAX_LAG_LOG_BYTES, ..Room::default() };
        assert!(is_waited_for(&slow, &slow.others[1]));
    }

    #[test]
    fn a_transfer_holds_while_its_pages_flow() {
        let mut sending = usual();
        sending.transfers = vec![transfer(Stage::Fetching, TRANSFER_IDLE_AFTER - SECOND)];
        sending.named_index = 9_000;
        let decision = decide(&sending);
        assert_eq!((decision.may_name, decision.may_free), (false, false));
        assert_eq!(decision.purge_upto, Some(8_840));
        assert_eq!(held_by(&decision), Some(Holder::Transfer(3)));

        sending.transfers[0].idle_for = TRANSFER_IDLE_AFTER;
        let decision = decide(&sending);
        assert_eq!((decision.may_name, decision.may_free, decision.held), (true, true, None));
    }

    #[test]
    fn the_place_of_a_member_that_starts_is_kept_and_pins_no_file() {
        let mut starting = usual();
        starting.transfers = vec![transfer(Stage::Starting, PATIENCE - SECOND)];
        starting.named_index = 9_000;
        let decision = decide(&starting);
        assert_eq!((decision.may_name, decision.may_free), (false, true));
        assert_eq!(held_by(&decision), Some(Holder::Start(3)));

        starting.transfers[0].idle_for = PATIENCE;
        assert!(decide(&starting).may_name);
        // A start takes its time even for the impatient.
        (starting.tail.patience, starting.transfers[0].idle_for) = (SECOND, TRANSFER_IDLE_AFTER - SECOND);
        assert!(!decide(&starting).may_name);
    }

    #[test]
    fn with_little_room_nobody_is_waited_for_longer_than_a_start_takes() {
        let mut short = usual();
        short.room.is_short = true;
        for (is_full, patience) in [(false, SHORT_OF_ROOM_PATIENCE), (true, OUT_OF_ROOM_PATIENCE)] {
            short.room.is_full = is_full;
            short.others[1] = other(3, 6_000, patience - SECOND);
            assert_eq!(
                (decide(&short).purge_upto, held_by(&decide(&short))),
                (Some(6_000), Some(Holder::Member(3)))
            );
            short.others[1].stuck_for = patience;
            assert_eq!(decide(&short).purge_upto, decide(&usual()).purge_upto);
        }
        (short.room.is_full, short.tail.patience) = (false, SECOND);
        assert_eq!(held_by(&decide(&short)), None, "who is less patient stays so");

        (short.tail.patience, short.others[1].stuck_for) = (PATIENCE, PATIENCE);
        short.transfers = vec![transfer(Stage::Fetching, SECOND)];
        assert_eq!(held_by(&decide(&short)), Some(Holder::Transfer(3)));
        short.room.is_full = true;
        let decision = decide(&short);
        assert!(decision.must_end_transfers && decision.may_name);
    }

    #[test]
    fn the_lowest_of_several_reasons_counts() {
        let mut many = usual();
        many.others = vec![other(2, 7_000, SECOND), other(3, 6_000, SECOND)];
        many.transfers = vec![transfer(Stage::Fetching, SECOND)];
        assert_eq!(held_by(&decide(&many)), Some(Holder::Member(3)));
        assert_eq!(decide(&many).purge_upto, Some(6_000));
    }

    #[test]
    fn progress_is_what_was_not_there_before() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + SECOND * seconds as u32;
        let mut progress = Progress::new(begin);
        progress.heard(100, 500, at(1));
        assert_eq!(progress.stuck_for(at(5)), 4 * SECOND);
        // It answers, and that is all.
        progress.heard(100, 600, at(5));
        assert_eq!(progress.stuck_for(at(6)), 5 * SECOND);
        // It started again, and applies what it had.
        progress.heard(50, 600, at(7));
        progress.heard(90, 600, at(8));
        assert_eq!(progress.stuck_for(at(9)), 8 * SECOND);
        progress.heard(101, 600, at(9));
        assert_eq!(progress.stuck_for(at(9)), Duration::ZERO);
        // Without anything new to have, having everything is enough.
        progress.heard(600, 600, at(10));
        progress.heard(600, 600, at(100));
        assert_eq!(progress.stuck_for(at(100)), Duration::ZERO);
    }
}
