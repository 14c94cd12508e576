//! Every bound in one place: nothing that a client, a peer or time can make grow is without one.

use std::time::Duration;

/// Most records in one write request.
pub const MAX_RECORDS_PER_WRITE: usize = 10_000;
/// Most bytes of `data` plus `meta` of one record, as JSON without white space.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// Most bytes of one record's `meta`, as JSON without white space.
pub const MAX_META_BYTES: usize = 16 << 10;
/// Most keys in one record's `meta`.
pub const MAX_META_KEYS: usize = 64;
/// Most bytes of a record's `tag`.
pub const MAX_TAG_BYTES: usize = 256;
/// Most bytes of a `node` label.
pub const MAX_NODE_BYTES: usize = 128;
/// Most bytes of a record's `key` and `channel`.
pub const MAX_KEY_BYTES: usize = 256;
/// Deepest nesting of arrays and objects in `data` and `meta`: parsers of readers often recurse.
pub const MAX_NESTING: usize = 512;
/// Most bytes of all headers of a record from another cluster, also of those that this version does not know.
pub const MAX_RECORD_HEADERS_BYTES: usize = 64 << 10;
/// Most characters of an idempotency key.
pub const MAX_IDEMPOTENCY_KEY_CHARS: usize = 256;
/// Most characters of a topic name.
pub const MAX_TOPIC_NAME_CHARS: usize = 255;
/// Most characters of a cluster or member name.
pub const MAX_MEMBER_NAME_CHARS: usize = 64;
/// Most members of one cluster.
pub const MAX_MEMBERS: usize = 7;
/// Fewest characters of the secret that members share.
pub const MIN_CLUSTER_SECRET_CHARS: usize = 16;

/// Records in a page when the request names no limit.
pub const DEFAULT_PAGE_RECORDS: usize = 256;
/// Most records in a page.
pub const MAX_PAGE_RECORDS: usize = 1000;
/// Byte budget of a page when the request names none.
pub const DEFAULT_PAGE_BYTES: usize = 1 << 20;
/// Largest byte budget of a page.
pub const MAX_PAGE_BYTES: usize = 8 << 20;
/// Most records that one page examines, so that a filter that drops everything still ends.
pub const MAX_PAGE_EXAMINED: usize = 10_000;
/// Bytes of records after which a page examines no more.
pub const MAX_PAGE_EXAMINED_BYTES: usize = 64 << 20;
/// How long one page goes on to look for records that pass a filter, once that takes turns.
pub const MAX_PAGE_LOOK_TIME: Duration = Duration::from_secs(1);
/// Threads that reads and scans for clients may keep waiting for the disk at once. The others of the runtime are
/// for what the cluster needs: applying, replication, checkpoints.
pub const MAX_CLIENT_READS: usize = 64;
/// Changes of topics and routers that are carried out at once, and those of one key; they go on when their clients are
/// gone.
pub const MAX_CHANGES_UNDER_WAY: usize = 256;
pub const MAX_CHANGES_UNDER_WAY_PER_KEY: usize = MAX_CHANGES_UNDER_WAY / 4;
/// The same of deletes by tag, which may have to read a whole topic: half of those that may wait for the disk.
pub const MAX_TAG_DELETES_UNDER_WAY: usize = MAX_CLIENT_READS / 2;
pub const MAX_TAG_DELETES_UNDER_WAY_PER_KEY: usize = MAX_TAG_DELETES_UNDER_WAY / 4;
/// Bytes of entries from the disk that all reads hold together; a larger one is read when no other is held.
pub const MAX_COLD_ENTRY_BYTES: u64 = 128 << 20;
/// How long a client that reads waits for room among them.
pub const COLD_ENTRY_PATIENCE: Duration = Duration::from_secs(10);
/// How long a pull that holds none of them does.
pub const PULL_PAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait of a long poll, in milliseconds.
pub const MAX_WAIT_MS: u64 = 30_000;
/// Topics of one watch, and of one WebSocket.
pub const MAX_TOPICS_PER_WATCH: usize = 256;
/// Bounds of the time after which an idle stream shows a sign of life, in milliseconds.
pub const MIN_HEARTBEAT_MS: u64 = 1000;
pub const MAX_HEARTBEAT_MS: u64 = 60_000;
/// A stream whose reader takes nothing for so long is closed, in milliseconds.
pub const SLOW_READER_MS: u64 = 30_000;
/// Frames of streams count from this size on, as long as they wait for their readers; and what all of them may take, a
/// quarter of it those of one key. Where there is no room frames are no larger than this.
pub const SMALL_FRAME_BYTES: usize = 64 << 10;
pub const MAX_STREAM_FRAMES_BYTES: usize = 128 << 20;
const _: () = assert!(MAX_STREAM_FRAMES_BYTES / 4 > MAX_PAGE_BYTES);
/// Most bytes of one message on a WebSocket, and the time from its first byte to its last.
pub const MAX_SOCKET_MESSAGE_BYTES: usize = 8 << 20;
pub const SOCKET_MESSAGE_TIME: Duration = Duration::from_secs(30);
/// How often a WebSocket is asked for a sign of life, and when one that gives none is given up.
pub const SOCKET_PING_INTERVAL: Duration = Duration::from_secs(30);
pub const SOCKET_SILENT_AFTER: Duration = Duration::from_secs(90);
/// Publishes of one WebSocket that may wait for their turn, and their bytes (one always fits).
pub const MAX_WAITING_PUBLISHES: usize = 64;
pub const MAX_WAITING_PUBLISH_BYTES: usize = 4 << 20;
/// Labels in the `node` field of one read.
pub const MAX_NODE_LABELS: usize = 64;

/// Deepest nesting of a filter; a leaf alone is 1 deep.
pub const MAX_FILTER_DEPTH: usize = 8;
/// Most leaves of a filter.
pub const MAX_FILTER_LEAVES: usize = 64;
/// Most steps of a path into `data`.
pub const MAX_FILTER_STEPS: usize = 32;
/// Most values that one leaf compares with.
pub const MAX_FILTER_IN: usize = 64;
/// Most bytes of a filter as JSON.
pub const MAX_FILTER_BYTES: usize = 64 << 10;
/// And of one in the form that members and clusters tell each other, a little longer.
pub const MAX_CANONICAL_FILTER_BYTES: usize = 2 * MAX_FILTER_BYTES;
/// Bytes of frames that the readers of all topics share.
pub const MAX_LANE_BYTES: usize = 64 << 20;
/// Most bytes of all filters of one watch: they stay in memory as long as its session.
pub const MAX_WATCH_FILTER_BYTES: usize = 64 << 10;
/// Most memory of what decides which records one watch or one WebSocket shows: parsed, a filter takes up to some
/// 32 times its text.
pub const MAX_WATCH_VIEW_BYTES: usize = 2 << 20;
/// Memory of all watch sessions and WebSockets of one member, and those of one key's.
pub const MAX_WATCH_MEMORY_BYTES: usize = 256 << 20;
pub const MAX_WATCH_MEMORY_BYTES_PER_KEY: usize = MAX_WATCH_MEMORY_BYTES / 4;

/// Most characters of a router name.
pub const MAX_ROUTER_NAME_CHARS: usize = 255;
/// Most bytes of a router's filter in canonical form: every member keeps it in memory.
pub const MAX_ROUTER_FILTER_BYTES: usize = 16 << 10;
/// Most addresses of another cluster that a mirror knows.
pub const MAX_REMOTE_URLS: usize = 16;
/// Most bytes of one of them.
pub const MAX_REMOTE_URL_BYTES: usize = 2048;
/// Most bytes of a mirror's token.
pub const MAX_REMOTE_TOKEN_BYTES: usize = 4096;

/// Most clusters whose records one remote may be let bring, and of which it is noted that it did.
pub const MAX_RELAYS: usize = 64;
/// Records of one mirror that are to be passed over and were not reached yet.
pub const MAX_SKIPS: usize = 16;

/// Entries in a page of a list when the request names no size.
pub const DEFAULT_LIST_PAGE: usize = 100;
/// Most entries in a page of a list.
pub const MAX_LIST_PAGE: usize = 1000;

/// Fixed cost that `bytes` counts per record beside `data` and `meta` (contract C-RET-08: at most 64).
pub const RECORD_FRAMING_BYTES: u64 = 32;

/// Commands of one member that may wait for their outcome at once: the window of its session. Further
/// requests wait their turn at the member that got them.
pub const SESSION_WINDOW: u64 = 8192;
/// Numbers from the oldest command under way to the newest: outcomes of all of them are remembered by every member. More
/// than the window, so that one slow command does not hold up the others at once.
pub const SESSION_SPAN: u64 = 16 * SESSION_WINDOW;
/// Earlier sessions of a member that are known never to come back. It opens one per start, and another one only
/// after it was refused.
pub const REPLACED_SESSIONS: usize = 16;
/// Longest window of an idempotency key, in milliseconds: 7 days.
pub const MAX_IDEMPOTENCY_WINDOW_MS: u64 = 7 * 86_400_000;
/// Which part of the cluster's idempotency keys one topic may have: a quarter.
pub const TOPIC_SHARE_OF_KEYS: u64 = 4;
/// Keys are forgotten at times that are multiples of this, in milliseconds.
pub const KEY_DUE_STEP_MS: u64 = 1000;
/// Idempotency keys that one command forgets in one topic in passing, and that one `Expire` forgets in all of them.
pub const MAX_KEYS_FORGOTTEN_PER_APPEND: u64 = 1024;
pub const MAX_KEYS_FORGOTTEN_PER_EXPIRY: u64 = 65_536;

/// Ranges of seqs that one command of a delete lists, and those of one block more; a delete of more is several
/// commands.
pub const MAX_DELETE_RANGES: usize = 1 << 20;
/// Blocks of runs in which one command of a delete removes something, 4 MiB of them; a delete in more is several
/// commands.
pub const MAX_DELETE_BLOCKS: usize = 1024;
/// Records, and bytes of them, that applying a delete looks at because they were written after the member that
/// proposed it had looked.
pub const MAX_LATE_RECORDS: u64 = 20_000;
pub const MAX_LATE_BYTES: u64 = 32 << 20;

/// Topics in which one command takes what is expired.
pub const MAX_TOPICS_PER_EXPIRY: usize = 1024;

/// Most postings that a look by tag takes from the index, 16 MiB; if more match, it reads the topic instead.
pub const MAX_LOOK_POSTINGS: u64 = 1 << 20;
/// So many are taken in any case, however few records the topic has.
pub const MIN_LOOK_POSTINGS: u64 = 4096;

/// Bytes of runs in one block: one checkpoint value, below sled's limit for inline values.
pub const RUN_BLOCK_BYTES: usize = 4 << 10;

/// Largest frame between members: the largest body, its records' headers and tables.
pub const MAX_PEER_FRAME_BYTES: usize = 256 << 20;
/// Largest request body that `max_body_bytes` can allow: the rest of a frame is for headers and tables.
pub const MAX_BODY_BYTES: usize = MAX_PEER_FRAME_BYTES - (16 << 20);
/// Bytes of entries that one AppendEntries message carries at most (one entry always fits).
pub const MAX_APPEND_BYTES: usize = 2 << 20;
/// AppendEntries messages of one stream that may be under way to a follower: two with entries, and one whose
/// answer the follower holds back because nobody waits for it.
pub const APPEND_PIPELINE_DEPTH: usize = 3;
/// Commands that one forwarded frame carries at most.
pub const MAX_FORWARD_COMMANDS: usize = 512;
/// Connections that are taken from members at once, and those on which it is not yet known who calls.
pub const MAX_PEER_CONNECTIONS: usize = 128;
pub const MAX_PEER_HANDSHAKES: usize = 64;
/// Frames that may wait to be written to one peer connection.
pub const PEER_QUEUE_FRAMES: usize = 1024;
/// Bytes of state or entries in one message to a member that takes over the state (one value always fits).
pub const TRANSFER_PAGE_BYTES: usize = 1 << 20;
/// How long such a message is worked at; what is there by then is sent. Well below what the member waits for it.
pub const TRANSFER_PAGE_TIME: Duration = Duration::from_secs(5);
/// Entries that such a member asks for at once.
pub const TRANSFER_INDEXES: usize = 4096;
/// Between two digests that members compare, in entries, and how many of them a member remembers.
pub const DIGEST_STRIDE_ENTRIES: u64 = 16_384;
pub const KEPT_DIGESTS: usize = 8;

/// A transfer of the state that nobody fetched from for so long is over.
pub const TRANSFER_IDLE_AFTER: Duration = Duration::from_secs(60);
/// Pauses before another state is sent to a member that did not get to have the last one: the first one, and the
/// longest.
pub const TRANSFER_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// How long a member without progress is waited for while room is short, and while there is none, if the patience is
/// no shorter: a start takes less, and one that is cut off needs a whole state, for which there may be no room either.
pub const SHORT_OF_ROOM_PATIENCE: Duration = Duration::from_secs(60);
pub const OUT_OF_ROOM_PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of log that are kept for a member that gets on, however slowly; more if the records that topics have are
/// more, because then a state is dearer too.
pub const MAX_LAG_LOG_BYTES: u64 = 16 << 30;

/// Bytes that a view of the checkpoint holds of what changed since; one that would hold more is given up.
pub const MAX_VIEW_BYTES: usize = 64 << 20;

/// How long a member must have been silent before a blank one of the same name may take its place.
pub const DOWN_BEFORE_REPLACED: Duration = Duration::from_secs(10);
/// Entries that a learner may lack of what is committed when it is made a voter.
pub const MAX_PROMOTION_LAG_ENTRIES: u64 = 5000;
/// Blank members that a leader remembers to ask for admission.
pub const MAX_APPLICANTS: usize = 16;
/// When one of them is forgotten that does not ask again.
pub const FORGET_APPLICANT_AFTER: Duration = Duration::from_secs(5);

/// How long the log waits for a file descriptor that it needs for its next segment.
pub const OUT_OF_FILES_PATIENCE: Duration = Duration::from_secs(120);
/// Space that is kept for a start on a full disk, and what must be left for a checkpoint to be written.
pub const BALLAST_BYTES: u64 = 16 << 20;
pub const CHECKPOINT_ROOM_BYTES: u64 = 2 << 20;
/// Length of a segment on a disk that has no room for one of the usual length.
pub const SMALL_SEGMENT_BYTES: u64 = 64 << 10;
/// Bytes per second that freeing space reads and writes at most.
pub const RECLAIM_BYTES_PER_S: u64 = 32 << 20;

/// A write of the checkpoint that takes longer is said to hang.
pub const CHECKPOINT_STALLED_AFTER: Duration = Duration::from_secs(30);
/// And a member that others can do without ends after this time of it.
pub const END_STALLED_AFTER: Duration = Duration::from_secs(300);
/// How long a member that ends waits for its last checkpoint.
pub const LAST_SAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest pause between two checkpoints, when each takes long.
pub const MAX_CHECKPOINT_PAUSE: Duration = Duration::from_secs(10);

/// A cluster of one exports its state at the latest after so many entries.
pub const EXPORT_ENTRIES: u64 = 1_000_000;
/// And after this time, if anything changed.
pub const EXPORT_INTERVAL: Duration = Duration::from_secs(600);

/// Fewest files that a member can run with; what it keeps for its disk and for what it connects to, most of it;
/// and most connections of clients that it takes by default.
pub const MIN_FILES: u64 = 128;
pub const MAX_RESERVED_FILES: u64 = 256;
pub const MAX_CONNECTIONS: u64 = 20_000;

/// Longest time, in milliseconds, in which the head of the next request must come, an idle connection's
/// too. The idle connections of a load balancer must end there first, mostly after 60 s: at least 75 s (C-CONV-20).
pub const HEAD_TIMEOUT_MS: u64 = 90_000;
const _: () = assert!(HEAD_TIMEOUT_MS >= 75_000);
/// Largest head of a request: request line and headers.
pub const MAX_HEAD_BYTES: usize = 32 << 10;
/// Most bytes that are read from a client's connection at once: what is kept to read into is up to twice that.
pub const MAX_READ_BYTES: usize = 32 << 10;
/// Bounds of what `max_inflight_bytes` is by default, a quarter of the memory.
pub const MIN_DEFAULT_INFLIGHT_BYTES: u64 = 128 << 20;
pub const MAX_DEFAULT_INFLIGHT_BYTES: u64 = 1 << 30;
/// Longest body of a request that writes no records.
pub const MAX_SMALL_BODY_BYTES: usize = 1 << 20;
/// A body that is not whole must have brought so many bytes per second in each stretch of this time, in milliseconds.
pub const BODY_GRACE_MS: u64 = 10_000;
pub const MIN_BODY_BYTES_PER_S: u64 = 16 << 10;
/// And all of it must come within this time, in milliseconds, and the time that its bytes take at this rate.
pub const WHOLE_BODY_MS: u64 = 60_000;
pub const MIN_WHOLE_BODY_BYTES_PER_S: u64 = 256 << 10;
/// Bytes that are read off a refused request so that its connection can go on, and how long that may take, in
/// milliseconds.
pub const MAX_DISCARDED_BYTES: usize = 64 << 10;
pub const DISCARD_TIME_MS: u64 = 1000;
/// How long what comes is read off a connection that ends with an answer, in milliseconds (C-CONV-20).
pub const LINGER_MS: u64 = 5000;
/// Answers of fewer bytes are not counted until they are written: what waits in a connection is about as much.
pub const MIN_COUNTED_ANSWER_BYTES: usize = 16 << 10;
/// Answers of fewer bytes are not compressed, whatever the client accepts.
pub const MIN_GZIP_BYTES: usize = 512;
/// Topics that one append over several may name.
pub const MAX_TOPICS_PER_APPEND: usize = 64;
/// Topics that have metrics of their own.
pub const MAX_METRIC_TOPICS: usize = 1000;
/// Routers that have metrics of their own.
pub const MAX_METRIC_ROUTERS: usize = 1000;

/// Records that one command copies along local routers, and routers that it serves.
pub const MAX_ROUTED_RECORDS: u64 = 65_536;
pub const MAX_ROUTE_PARTS: usize = 1024;
/// Records that one router copies at once.
pub const MAX_ROUTED_RECORDS_PER_ROUTER: u64 = 8192;
/// Local routers with a filter whose sources are read at once.
pub const MAX_PICKS: usize = 8;
/// Changes of routers' configurations that are known one by one.
pub const MAX_NOTED_ROUTER_CHANGES: usize = 4096;
/// Longest pause of a local router whose destination is full, in milliseconds.
pub const MAX_ROUTE_PAUSE_MS: u64 = 1000;

/// Above every seq, epoch and time that another cluster may name: no topic gets there, and what is kept of seqs can
/// count on.
pub const SEQ_LIMIT: u64 = 1 << 60;
/// Records and gaps of one topic in one answer to a mirror.
pub const MAX_PULL_ITEMS: usize = 10_000;
/// Stretches of seqs that are told of one origin, and origins, when something was lost.
pub const MAX_TOLD_RANGES: usize = 1000;
/// Bytes of records that a mirror gets with one answer; a single record may be more.
pub const MAX_PULL_BYTES: usize = 8 << 20;
/// The same for topics whose destination took nothing last time.
pub const MAX_RETRY_PULL_BYTES: usize = 64 << 10;
/// Longest answer to a pull that is read.
pub const MAX_PULL_ANSWER_BYTES: usize = 2 * MAX_PULL_BYTES;
/// Topics that one pull asks for, and the bytes of what it says of them.
pub const MAX_PULL_WANTED: usize = 1024;
pub const MAX_PULL_WANTED_BYTES: usize = 128 << 10;
/// Pulls that are under way for one key at one member.
pub const MAX_PULLS_PER_KEY: usize = 16_384;
/// Records that are looked at for one answer, and the time for that: a filter may drop nearly all of them.
pub const MAX_PULL_EXAMINED: usize = 200_000;
pub const MAX_PULL_TIME: Duration = Duration::from_secs(1);
/// Topics that one answer lists or tells to have changed, and bytes of their names.
pub const MAX_TOLD_CHANGES: usize = 16_384;
pub const MAX_TOLD_NAME_BYTES: usize = 1 << 20;
/// Stretches of what was taken and what was lost by turns that are gone through to find out what is unknown of a range.
pub const MAX_KNOWN_TURNS: usize = 8192;
/// Gaps that a topic tells one by one; beyond, those of one origin are joined.
pub const MAX_GAPS_PER_TOPIC: usize = 1 << 17;
/// Stretches of seqs that are known to be lost, of all origins of a topic; beyond, a gap reaches up to the one before.
pub const MAX_REPORTED_PER_TOPIC: usize = 1 << 17;
/// Topics, here and of other clusters, that the records of one topic were first written in.
pub const MAX_ORIGINS_PER_TOPIC: usize = 1 << 16;
/// Topics that a mirror may not make of which it is noted where it begins.
pub const MAX_BEGUN_PER_ROUTER: usize = 1 << 17;
/// Of all topics together.
pub const MAX_ORIGINS: usize = 1 << 20;
/// Topics in which all routers have a position, or it is noted where they begin; beyond, mirrors take up no further ones.
pub const MAX_POSITIONS: usize = 1 << 20;
/// Gaps, and stretches that are known to be lost, of all topics; beyond, each origin of a topic makes no second one.
pub const MAX_GAPS: usize = 1 << 20;
pub const MAX_REPORTED: usize = 1 << 20;
/// As [`MAX_TOLD_RANGES`], of all origins of a topic together.
pub const MAX_TOLD_RANGES_IN_ALL: usize = 4096;
/// Topics that one page of a list names.
pub const MAX_LISTED_PER_PAGE: usize = 1 << 16;
const _: () = assert!(MAX_LISTED_PER_PAGE >= MAX_TOLD_NAME_BYTES / 24 + 512);
/// Bytes of what all mirrors of a member remember of topics that are due or are left alone, beyond what each may in any
/// case.
pub const MAX_TOPICS_BYTES: usize = 128 << 20;
pub const MIN_TOPICS_BYTES: usize = 8 << 10;
/// A page that brings nothing has come on if it covers so many seqs, or all that there are.
pub const MIN_EMPTY_PAGE_SEQS: u64 = 64;
/// Pauses of a mirror when answers that did not wait bring nothing, in milliseconds: the first one, and the longest.
pub const MIRROR_IDLE_PAUSE_MS: (u64, u64) = (20, 1000);
/// How often a mirror of many topics looks whether some that it left alone can be tried again, at most.
pub const RETRY_LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Its pauses before it lists all topics again, in milliseconds.
pub const MIRROR_LIST_PAUSE_MS: (u64, u64) = (100, 5000);
/// Topics of which it is noted that they changed, and for how long if nobody asks.
pub const MAX_NOTED_CHANGES: usize = 1 << 17;
pub const FORGET_CHANGES_AFTER: Duration = Duration::from_secs(120);
/// Topics of a mirror of many that were active last: what comes in those is brought by the first answer.
pub const MAX_WARM_TOPICS: usize = 256;
/// Bytes that a pull asks for while little is known to be there; the most that one that asks for more has room for,
/// what all of these have room for together, and how long another waits for some of it before it asks for little.
pub const SMALL_PULL_BYTES: usize = 64 << 10;
pub const LARGE_ANSWER_BYTES: usize = MAX_PULL_BYTES + (2 << 20);
pub const MAX_LARGE_BYTES: usize = 6 * LARGE_ANSWER_BYTES;
pub const LARGE_PULL_PATIENCE: Duration = Duration::from_secs(1);
/// A pull asks for about as much as comes within this time.
pub const LARGE_PULL_TIME: Duration = Duration::from_secs(1);
/// Bytes of all answers together beyond what they have room for.
pub const MAX_GROWN_ANSWER_BYTES: usize = 32 << 20;
/// How long a pull waits for something to say, at least, while other mirrors wait for its connection.
pub const MIN_SHARED_PULL_WAIT: Duration = Duration::from_millis(250);
/// How long a mirror waits for its turn before that is told.
pub const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// For how long a mirror has its turns from a part of all after a pull that failed or was slow: at first, and at most.
pub const TROUBLE_SPANS: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(3600));
/// An answer is slow that takes longer, and the time that its bytes take at [`MIN_ANSWER_BYTES_PER_S`].
pub const SLOW_ANSWER_AFTER: Duration = Duration::from_secs(5);
/// Most connections to other clusters that mirrors have at once.
pub const MAX_MIRROR_CONNECTIONS: u64 = 2048;
/// How long a connection that nobody uses is kept.
pub const REMOTE_IDLE_AFTER: Duration = Duration::from_secs(2);
/// How long connecting to another cluster may take.
pub const REMOTE_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Names of other clusters' members that are looked up at once, each by a thread that may wait long for a name server;
/// of these, names that were not found the last time.
pub const MAX_LOOK_UPS: usize = 8;
pub const MAX_DOUBTFUL_LOOK_UPS: usize = 4;
/// How long somebody waits for one. Below what connecting may take, so that an old answer is still of use.
pub const NAME_TIMEOUT: Duration = Duration::from_millis(2000);
/// How long what was found, or that nothing was, counts without another look; and for how long an address does while
/// no name server answers.
pub const KNOWN_NAME_FOR: Duration = Duration::from_secs(5);
pub const OLD_NAME_FOR: Duration = Duration::from_secs(600);
/// Names of which that is kept.
pub const MAX_KNOWN_NAMES: usize = 16_384;
/// How long a pull waits for something to say, in milliseconds, and how long one may. Short, because nothing else
/// tells a link that is idle from one that is dead.
pub const PULL_WAIT_MS: u64 = 5000;
pub const MAX_PULL_WAIT_MS: u64 = 30_000;
/// A link from which nothing has come for this long is dead.
pub const REMOTE_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Within this time all of an answer must have come, and the time that its bytes take at this rate; the second one is
/// while other mirrors wait for the connection.
pub const WHOLE_ANSWER_TIME: Duration = Duration::from_secs(60);
pub const WHOLE_SHARED_ANSWER_TIME: Duration = Duration::from_secs(15);
pub const MIN_ANSWER_BYTES_PER_S: usize = 64 << 10;
/// Pulls that have to go well before one is longer again that another cluster found too long.
pub const PULLS_BEFORE_LONGER: u32 = 100;
/// Pauses of a mirror after failures, in milliseconds: the first one, and the longest (C-MIRROR-11).
pub const MIRROR_PAUSE_MS: (u64, u64) = (100, 30_000);
