//! Flipped bits, cut files, lost files: noticed, never served, and repaired where there is somebody to do it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, eventually};

/// Small segments and a small cache, so that what was written is soon to be read from sealed files.
pub const SMALL: [&str; 4] = ["--segment-bytes", "256KiB", "--cache-bytes", "1MiB"];
const DATA_BYTES: usize = 10_000;

fn data(number: u64) -> Value {
    json!(format!("{number:08} {}", "x".repeat(DATA_BYTES)))
}

/// Appends `count` records, ten to a request.
pub async fn fill(cluster: &Cluster, member: usize, topic: &str, count: u64) {
    for first in (0..count).step_by(10) {
        let records: Vec<Value> =
            (first..count.min(first + 10)).map(|n| json!({ "data": data(n) })).collect();
        let body = json!({ "records": records });
        cluster.client.post(&cluster.topic_url(member, topic), &body).await.expect("append");
    }
}

/// Everything in `topic`, as `member` shows it.
pub async fn expect_filled(cluster: &Cluster, member: usize, topic: &str, count: u64, consistency: &str) {
    let (mut from_seq, mut numbers) = (0, 0..);
    while from_seq < count {
        let body = json!({ "from_seq": from_seq, "limit": 1000, "consistency": consistency });
        let url = format!("{}/diff", cluster.topic_url(member, topic));
        let page = cluster.client.post(&url, &body).await.expect("a page");
        let records = page["records"].as_array().expect("records");
        assert!(!records.is_empty(), "{topic} ends at {from_seq}, not at {count}");
        for record in records {
            assert_eq!(record["data"], data(numbers.next().expect("a number")));
        }
        from_seq = page["next_from_seq"].as_u64().expect("a cursor");
    }
    assert_eq!(from_seq, count);
}

/// Names in `dir` that end in `suffix`, sorted.
pub fn names(dir: &Path, suffix: &str) -> Vec<String> {
    let items = fs::read_dir(dir).expect("list a directory");
    let mut names: Vec<String> = items
        .flatten()
        .filter_map(|item| item.file_name().into_string().ok())
        .filter(|name| name.ends_with(suffix))
        .collect();
    names.sort();
    names
}

fn flip_bit(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).expect("open a file");
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, at).expect("read a byte");
    file.write_all_at(&[byte[0] ^ 4], at).expect("write a byte");
}

fn cut_in_half(path: &Path) {
    let file = fs::File::options().write(true).open(path).expect("open a file");
    file.set_len(file.metadata().expect("measure it").len() / 2).expect("cut it");
}

/// A place in the middle of the data of the first record that `path` holds.
fn inside_a_record(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("read a segment");
    let run = bytes.windows(DATA_BYTES / 2).position(|window| window.iter().all(|byte| *byte == b'x'));
    run.expect("a record") as u64
}

pub fn log_dir(cluster: &Cluster, member: usize) -> PathBuf {
    cluster.members[member].data_dir.join("log")
}

pub fn damage_checkpoint(cluster: &Cluster, member: usize) {
    let db = cluster.members[member].data_dir.join("checkpoint").join("db");
    let file = fs::File::options().read(true).write(true).open(db).expect("open it");
    let len = file.metadata().expect("measure it").len();
    // All of it: a part may hold nothing that still counts.
    let noise: Vec<u8> = (0..len).map(|at| (at * 7) as u8).collect();
    file.write_all_at(&noise, 0).expect("overwrite it");
}

/// Lines of a member's log that hold `word`.
pub fn lines_with(cluster: &Cluster, member: usize, word: &str) -> Vec<String> {
    cluster.members[member].log().lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
}

pub fn node_id(dir: &Path) -> String {
    let identity = fs::read_to_string(dir.join("identity")).expect("read the identity");
    identity.lines().find_map(|line| line.strip_prefix("node_id ")).expect("an id").to_owned()
}

/// The last entry that the export of `data_dir` covers, as its header says.
pub fn exported_index(data_dir: &Path) -> u64 {
    let export = fs::read(data_dir.join("export")).expect("read the export");
    u64::from_le_bytes(export[20..28].try_into().expect("a header"))
}

/// Waits until member 0, a cluster of one, has purged its log so far that it cannot be rebuilt from it.
pub async fn wait_until_purged(cluster: &Cluster) {
    let first = "0000000000000001.seg".to_owned();
    eventually("the log is purged behind an export", PATIENCE, async || {
        let is_gone = !names(&log_dir(cluster, 0), ".seg").contains(&first);
        (is_gone && cluster.members[0].data_dir.join("export").exists()).then_some(())
    })
    .await;
}

/// A cluster of one whose log is purged has only its export to come back from, and comes back whole.
#[tokio::test]
async fn a_cluster_of_one_with_a_purged_log_comes_back_from_its_exported_state() {
    let arguments = [&SMALL[..], &["--kept-log-entries", "20"]].concat();
    let mut cluster = Cluster::start_with(1, &arguments).await;
    fill(&cluster, 0, "stays", 1000).await;
    fill(&cluster, 0, "goes", 1000).await;
    wait_until_purged(&cluster).await;
    let mut stays = 1000;
    let damages: [fn(&Cluster); 3] = [
        |cluster| damage_checkpoint(cluster, 0),
        |cluster| {
            let db = cluster.members[0].data_dir.join("checkpoint").join("db");
            fs::File::options().write(true).open(db).and_then(|file| file.set_len(200)).expect("cut it");
        },
        |cluster| fs::remove_dir_all(cluster.members[0].data_dir.join("checkpoint")).expect("remove it"),
    ];
    for (turn, damage) in damages.into_iter().enumerate() {
        if turn == 0 {
            cluster.kill(0);
        } else {
            assert!(cluster.members[0].terminate().await.success());
        }
        damage(&cluster);
        cluster.restart(0).await;
        assert_eq!(lines_with(&cluster, 0, "restored from the state that was exported").len(), turn + 1);
        expect_filled(&cluster, 0, "stays", stays, "strong").await;
        if turn == 0 {
            expect_filled(&cluster, 0, "goes", 1000, "strong").await;
            cluster.client.delete(&cluster.topic_url(0, "goes")).await.expect("delete a topic");
        }
        assert!(cluster.client.get(&cluster.topic_url(0, "goes")).await.is(404), "it was deleted");
        let record = json!({ "records": [{ "data": data(stays) }] });
        cluster.client.post(&cluster.topic_url(0, "stays"), &record).await.expect("append");
        stays += 1;
    }
    cluster.kill(0);
    cluster.restart(0).await;
    expect_filled(&cluster, 0, "stays", stays, "strong").await;
}

/// What topics gave up after the export was made is freed, and not missed when the export is all there is.
#[tokio::test]
async fn what_was_freed_since_the_export_is_not_missed() {
    let arguments = [&SMALL[..], &["--kept-log-entries", "20"]].concat();
    let mut cluster = Cluster::start_with(1, &arguments).await;
    fill(&cluster, 0, "goes", 2000).await;
    fill(&cluster, 0, "stays", 100).await;
    wait_until_purged(&cluster).await;
    let log_dir = log_dir(&cluster, 0);
    let data_dir = cluster.members[0].data_dir.clone();
    // An export is due again more than 20 entries later: a fresh one, of at least all of the above, stays for a
    // while.
    let exported = eventually("there is a fresh export", PATIENCE, async || {
        let exported = exported_index(&data_dir);
        if exported < 220 {
            cluster.append(0, "filler", data(0)).await.expect("append");
        }
        Some(exported).filter(|index| *index >= 220)
    })
    .await;
    let kept = names(&log_dir, ".kept").len();
    assert!(kept > 3, "{kept} kept files");
    cluster.client.delete(&cluster.topic_url(0, "goes")).await.expect("delete a topic");
    eventually("what it held is freed", PATIENCE, async || {
        (names(&log_dir, ".kept").len() <= kept / 2).then_some(())
    })
    .await;
    assert_eq!(exported_index(&data_dir), exported, "the export still has the topic");

    cluster.kill(0);
    damage_checkpoint(&cluster, 0);
    cluster.restart(0).await;
    assert_eq!(lines_with(&cluster, 0, "restored from the state that was exported").len(), 1);
    assert!(cluster.client.get(&cluster.topic_url(0, "goes")).await.is(404), "it stays deleted");
    expect_filled(&cluster, 0, "stays", 100, "strong").await;
    // Freeing begins again only when all that is in use was found to be there.
    fill(&cluster, 0, "more", 500).await;
    cluster.client.delete(&cluster.topic_url(0, "more")).await.expect("delete a topic");
    fill(&cluster, 0, "again", 500).await;
    eventually("space is freed again", PATIENCE, async || {
        assert!(cluster.members[0].is_running(), "the member misses something");
        (names(&log_dir, "").len() < 36).then_some(())
    })
    .await;
    cluster.kill(0);
    cluster.restart(0).await;
    expect_filled(&cluster, 0, "stays", 100, "strong").await;
}

/// Alone, a member whose log is damaged ends with one line that names the file, and changes nothing.
#[tokio::test]
async fn a_cluster_of_one_with_a_damaged_log_says_so_in_one_line_and_changes_nothing() {
    let mut cluster = Cluster::start_with(1, &SMALL).await;
    fill(&cluster, 0, "t", 300).await;
    assert!(cluster.members[0].terminate().await.success());
    let log_dir = log_dir(&cluster, 0);
    let segments = names(&log_dir, ".seg");
    let (first, last) = (log_dir.join(&segments[0]), log_dir.join(segments.last().expect("a segment")));
    // A segment's header, a sealed one's table, the last frame of all: closing leaves a witness of it.
    let table = fs::metadata(&first).expect("measure it").len() - 100;
    let last_record = {
        let bytes = fs::read(&last).expect("read it");
        // Inside of its text: a lone byte may be one of a checksum.
        let text = [b'x'; 64];
        bytes.windows(text.len()).rposition(|window| window == text).expect("a record") as u64
    };
    for (path, at) in [(&first, 2), (&first, 40), (&first, table), (&last, 4096 + 20), (&last, last_record)] {
        flip_bit(path, at);
        let before = fs::read(path).expect("read it");
        cluster.spawn(0);
        let status = eventually("it ends", PATIENCE, async || cluster.members[0].ended()).await;
        assert!(!status.success());
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let log = cluster.members[0].log();
        let line = log.lines().last().expect("a line");
        assert!(line.starts_with("antiphon: ") && line.contains(name), "{name} at {at}: {line}");
        assert!(line.contains("restore a backup"), "{line}");
        assert_eq!(fs::read(path).expect("read it again"), before, "it is as it was");
        flip_bit(path, at);
    }
    cluster.restart(0).await;
    expect_filled(&cluster, 0, "t", 300, "strong").await;
}

/// A read that finds damage fails; nothing wrong is shown, and all else goes on.
#[tokio::test]
async fn a_cluster_of_one_never_serves_a_damaged_record_and_goes_on() {
    let mut cluster = Cluster::start_with(1, &SMALL).await;
    fill(&cluster, 0, "bad", 100).await;
    fill(&cluster, 0, "good", 200).await;
    let log_dir = log_dir(&cluster, 0);
    let segment = log_dir.join(&names(&log_dir, ".seg")[0]);
    flip_bit(&segment, inside_a_record(&segment));
    let reply = cluster.diff(0, "bad", "strong").await;
    assert!(reply.is(500), "{reply:?}");
    assert!(format!("{reply:?}").contains("damaged"), "{reply:?}");
    expect_filled(&cluster, 0, "good", 200, "strong").await;
    cluster.append(0, "bad", json!("more")).await.expect("append");
    assert!(cluster.members[0].is_running());
    assert_eq!(lines_with(&cluster, 0, "restore a backup").len(), 1, "one line tells what to do");
}

/// Harms a log in a directory with these segments.
type Damage = fn(&Path, &[String]);

/// With others, a member whose log is damaged, cut or lost in part sets it aside and starts blank under a new
/// Raft id; the others go on, and what it had is there until it is a voter again.
#[tokio::test]
async fn a_damaged_member_sets_its_data_aside_and_starts_blank_under_a_new_id() {
    let damages: [(&str, Damage); 4] = [
        ("a bit of a frame", |dir, names| flip_bit(&dir.join(names.last().expect("a name")), 4096 + 20)),
        ("a sealed segment cut", |dir, names| cut_in_half(&dir.join(&names[0]))),
        ("a segment lost", |dir, names| fs::remove_file(dir.join(&names[1])).expect("remove it")),
        ("a header", |dir, names| flip_bit(&dir.join(&names[1]), 3)),
    ];
    for (what, damage) in damages {
        println!("{what}");
        let mut cluster = Cluster::start_with(3, &SMALL).await;
        fill(&cluster, 0, "t", 300).await;
        let victim = cluster.follower().await;
        // In order: what is damaged within 100 ms of a kill may pass for a torn write.
        assert!(cluster.members[victim].terminate().await.success());
        let data_dir = cluster.members[victim].data_dir.clone();
        let old_id = node_id(&data_dir);
        let log_dir = log_dir(&cluster, victim);
        damage(&log_dir, &names(&log_dir, ".seg"));
        cluster.spawn(victim);
        let aside = eventually("its data are set aside", PATIENCE, async || {
            assert!(cluster.members[victim].is_running(), "it goes on");
            let found = fs::read_dir(&data_dir)
                .expect("list it")
                .flatten()
                .find(|item| item.file_name().to_string_lossy().starts_with("damaged-"));
            let is_said = lines_with(&cluster, victim, "starts blank under a new id").len() == 1;
            found.map(|item| item.path()).filter(|_| is_said && !data_dir.join("damaged").exists())
        })
        .await;
        assert_ne!(node_id(&data_dir), old_id);
        assert_eq!(node_id(&aside), old_id);
        assert!(!names(&aside.join("log"), ".seg").is_empty(), "what it had is there");
        let other = (victim + 1) % 3;
        fill(&cluster, other, "during", 20).await;
        expect_filled(&cluster, other, "t", 300, "strong").await;
        if what == "a segment lost" {
            eventually("it votes again, and what was damaged is gone", 2 * PATIENCE, async || {
                (!aside.exists() && lines_with(&cluster, victim, "removed the damaged data").len() == 1)
                    .then_some(())
            })
            .await;
            expect_filled(&cluster, victim, "t", 300, "eventual").await;
        }
    }
}

/// A log that ends before the checkpoint beside it has lost what it had confirmed, however well it reads.
#[tokio::test]
async fn a_log_that_lost_its_end_is_not_taken_for_the_whole() {
    let mut cluster = Cluster::start_with(1, &SMALL).await;
    fill(&cluster, 0, "t", 10).await;
    assert!(cluster.members[0].terminate().await.success());
    let log_dir = log_dir(&cluster, 0);
    let segment = log_dir.join(&names(&log_dir, ".seg")[0]);
    let before = fs::read(&segment).expect("read it");
    cluster.restart(0).await;
    fill(&cluster, 0, "t", 3).await;
    assert!(cluster.members[0].terminate().await.success());
    fs::write(&segment, before).expect("write the old one");
    // The log itself would know; what is asked here is whether the checkpoint does.
    fs::remove_file(log_dir.join("closed")).expect("remove the note of its end");
    cluster.spawn(0);
    let status = eventually("it ends", PATIENCE, async || cluster.members[0].ended()).await;
    assert!(!status.success());
    let log = cluster.members[0].log();
    let line = log.lines().last().expect("a line");
    assert!(line.contains("has lost its end") && line.contains("restore a backup"), "{line}");
}

/// A cluster whose members were all damaged founds no new one beside what was set aside.
#[tokio::test]
async fn members_that_had_data_found_no_new_cluster() {
    let mut cluster = Cluster::start_with(3, &SMALL).await;
    fill(&cluster, 0, "t", 300).await;
    (0..3).for_each(|number| cluster.kill(number));
    for number in 0..3 {
        let log_dir = log_dir(&cluster, number);
        cut_in_half(&log_dir.join(&names(&log_dir, ".seg")[0]));
        cluster.spawn(number);
    }
    for number in 0..3 {
        eventually("it starts blank", PATIENCE, async || {
            (lines_with(&cluster, number, "serves clients").len() > 1).then_some(())
        })
        .await;
    }
    // Founding takes a fifth of a second when nothing is in its way.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for number in 0..3 {
        let identity =
            fs::read_to_string(cluster.members[number].data_dir.join("identity")).expect("read it");
        assert!(identity.contains("cluster_id none"), "{identity}");
        assert!(!cluster.append(number, "t", json!(1)).await.is(200));
    }
}

/// A running member that finds damage in what it stored shows nothing of it, ends when the others can do without
/// it, and starts blank.
#[tokio::test]
async fn a_member_that_reads_damage_ends_and_starts_blank() {
    let mut cluster = Cluster::start_with(3, &SMALL).await;
    fill(&cluster, 0, "t", 300).await;
    let victim = cluster.follower().await;
    let data_dir = cluster.members[victim].data_dir.clone();
    let url = format!("{}/diff", cluster.topic_url(victim, "t"));
    eventually("the follower has all of it", PATIENCE, async || {
        let body = json!({ "from_seq": 299, "consistency": "eventual" });
        let page = cluster.client.post(&url, &body).await.ok()?;
        (page["head_seq"] == json!(300)).then_some(())
    })
    .await;
    let log_dir = log_dir(&cluster, victim);
    let segment = log_dir.join(&names(&log_dir, ".seg")[0]);
    let old_id = node_id(&data_dir);

    // One of the others is down: the damaged member is worth more than none.
    let other = (0..3).find(|number| *number != victim).expect("another");
    cluster.kill(other);
    eventually("the survivors have a leader", PATIENCE, async || {
        cluster.append(victim, "u", json!(1)).await.is(200).then_some(())
    })
    .await;
    flip_bit(&segment, inside_a_record(&segment));
    let body = json!({ "consistency": "eventual" });
    assert!(cluster.client.post(&url, &body).await.is(500));
    eventually("it has looked for others that can do without it", PATIENCE, async || {
        (!lines_with(&cluster, victim, "no majority without this member, so it goes on").is_empty())
            .then_some(())
    })
    .await;
    assert!(cluster.members[victim].is_running(), "two members are needed");
    assert!(cluster.client.post(&url, &body).await.is(500));

    cluster.spawn(other);
    let status =
        eventually("the damaged member ends", PATIENCE, async || cluster.members[victim].ended()).await;
    assert!(!status.success());
    let log = cluster.members[victim].log();
    let line = log.lines().last().expect("a line");
    assert!(line.starts_with("antiphon: ") && line.contains("filled again"), "{line}");
    assert!(data_dir.join("damaged").exists(), "the next start would not find it by itself");
    cluster.spawn(victim);
    eventually("it is blank", PATIENCE, async || (!data_dir.join("damaged").exists()).then_some(())).await;
    assert_ne!(node_id(&data_dir), old_id);
    fill(&cluster, other, "during", 20).await;
}

/// Harms a member that does not run.
type DamageTo = fn(&Cluster, usize);

/// The whole way back: damage of every kind, and a member that found it while it ran, heal through the others, also
/// when their logs no longer hold what it lacks; what was set aside goes.
#[tokio::test]
async fn a_damaged_member_is_filled_again_by_the_others() {
    let kinds: [(&str, &[&str], DamageTo); 3] = [
        ("log", &[], |cluster, victim| {
            let log_dir = log_dir(cluster, victim);
            cut_in_half(&log_dir.join(&names(&log_dir, ".seg")[0]));
        }),
        ("log, purged elsewhere", &["--kept-log-entries", "5"], |cluster, victim| {
            let log_dir = log_dir(cluster, victim);
            let last = names(&log_dir, ".seg").pop().expect("a segment");
            flip_bit(&log_dir.join(last), 3);
        }),
        ("checkpoint, log purged", &["--kept-log-entries", "5"], damage_checkpoint),
    ];
    for (what, arguments, damage) in kinds {
        println!("{what}");
        let mut cluster = Cluster::start_with(3, &[&SMALL[..], arguments].concat()).await;
        fill(&cluster, 0, "t", 300).await;
        let victim = cluster.follower().await;
        if !arguments.is_empty() {
            let log_dir = log_dir(&cluster, victim);
            eventually("the log is purged", PATIENCE, async || {
                let names = names(&log_dir, ".seg");
                (!names.contains(&"0000000000000001.seg".to_owned())).then_some(())
            })
            .await;
        }
        cluster.kill(victim);
        damage(&cluster, victim);
        cluster.spawn(victim);
        let data_dir = cluster.members[victim].data_dir.clone();
        eventually("its data are set aside", PATIENCE, async || {
            lines_with(&cluster, victim, "starts blank under a new id").pop()
        })
        .await;
        let other = (victim + 1) % 3;
        fill(&cluster, other, "during", 20).await;
        eventually("it is a voter again", 2 * PATIENCE, async || {
            assert!(cluster.members[victim].is_running(), "it goes on");
            let has_aside = fs::read_dir(&data_dir)
                .expect("list it")
                .flatten()
                .any(|item| item.file_name().to_string_lossy().starts_with("damaged"));
            (!has_aside).then_some(())
        })
        .await;
        cluster.wait_ready(victim).await;
        expect_filled(&cluster, victim, "t", 300, "eventual").await;
        expect_filled(&cluster, victim, "during", 20, "strong").await;
        // It counts: with another one down, the two are a majority.
        cluster.kill(other);
        eventually("two members go on", PATIENCE, async || {
            cluster.append(victim, "after", json!(1)).await.is(200).then_some(())
        })
        .await;
    }
}
