//! What a member does at a start with data that it cannot open: only what is certainly damaged, and only where others
//! have it, is set aside. For any other reason it ends with one line, and nothing on its disk is changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use antiphon::state::Key;
use antiphon::storage::{Checkpoint, SledCheckpoint};
use serde_json::json;

use crate::damage::{
    SMALL, damage_checkpoint, expect_filled, exported_index, fill, lines_with, log_dir, names, node_id,
    wait_until_purged,
};
use crate::harness::{Cluster, PATIENCE, eventually, one_cluster};

/// Names and contents of all files below `dir`, but for what every start writes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut dirs) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(next) = dirs.pop() {
        for item in fs::read_dir(&next).expect("list a directory").flatten() {
            let path = item.path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let bytes = fs::read(&path).expect("read a file");
                found.insert(path, bytes);
            }
        }
    }
    found
}

/// Starts a member that cannot open what it has, and gives its last line.
async fn refusal_of(cluster: &mut Cluster, number: usize) -> String {
    cluster.spawn(number);
    let status = eventually("it ends", PATIENCE, async || cluster.members[number].ended()).await;
    assert!(!status.success());
    cluster.members[number].log().lines().last().expect("a line").to_owned()
}

/// Gives the checkpoint of a member, which does not run, to a version that does not exist yet; or back.
fn hand_checkpoint_to_version(data_dir: &Path, version: Option<u8>, ours: &mut Option<Vec<u8>>) {
    let checkpoint = SledCheckpoint::open(&data_dir.join("checkpoint")).expect("open the checkpoint");
    let key = Key::Machine.encode();
    let mut value = checkpoint.get(&key).expect("read").expect("a head");
    match version {
        Some(version) => {
            *ours = Some(value.clone());
            value[0] = version;
        }
        None => value = ours.take().expect("a head of ours"),
    }
    checkpoint.write(vec![(key, Some(value))]).expect("write");
}

/// A rollback of the program is no reason to throw anything away: a member that finds a checkpoint of a newer version,
/// with a log that is purged and enough others, ends with one line; so would all three.
#[tokio::test]
async fn a_checkpoint_of_a_newer_version_is_not_set_aside() {
    let arguments = [&SMALL[..], &["--kept-log-entries", "5"]].concat();
    let mut cluster = Cluster::start_with(3, &arguments).await;
    fill(&cluster, 0, "t", 300).await;
    let victim = cluster.follower().await;
    let first = "0000000000000001.seg".to_owned();
    let dir = log_dir(&cluster, victim);
    eventually("the log is purged", PATIENCE, async || (!names(&dir, ".seg").contains(&first)).then_some(()))
        .await;
    assert!(cluster.members[victim].terminate().await.success());
    let data_dir = cluster.members[victim].data_dir.clone();
    let mut ours = None;
    hand_checkpoint_to_version(&data_dir, Some(200), &mut ours);
    let log_before = contents(&dir);
    let id = node_id(&data_dir);

    let line = refusal_of(&mut cluster, victim).await;
    assert!(line.starts_with("antiphon: ") && line.contains("version"), "{line}");
    assert!(line.contains("nothing was changed"), "{line}");
    assert!(contents(&dir) == log_before, "the log is as it was");
    assert_eq!(node_id(&data_dir), id);
    assert!(!names(&data_dir, "").iter().any(|name| name.starts_with("damaged")));

    hand_checkpoint_to_version(&data_dir, None, &mut ours);
    cluster.restart(victim).await;
    expect_filled(&cluster, victim, "t", 300, "eventual").await;
}

/// A restore is judged before it changes anything: with a damaged export too, the checkpoint stays where it is.
#[tokio::test]
async fn a_restore_that_fails_changes_nothing() {
    let arguments = [&SMALL[..], &["--kept-log-entries", "20"]].concat();
    let mut cluster = Cluster::start_with(1, &arguments).await;
    fill(&cluster, 0, "t", 1000).await;
    wait_until_purged(&cluster).await;
    assert!(cluster.members[0].terminate().await.success());
    let data_dir = cluster.members[0].data_dir.clone();
    damage_checkpoint(&cluster, 0);
    let export = fs::read(data_dir.join("export")).expect("read the export");
    let mut damaged = export.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    fs::write(data_dir.join("export"), &damaged).expect("write the export");
    let files = names(&data_dir, "");
    let line = refusal_of(&mut cluster, 0).await;
    assert!(line.contains("restore a backup"), "{line}");
    assert_eq!(names(&data_dir, ""), files, "nothing was moved, and nothing came");
    assert!(fs::read(data_dir.join("export")).expect("read it") == damaged);

    fs::write(data_dir.join("export"), export).expect("write the export");
    cluster.restart(0).await;
    expect_filled(&cluster, 0, "t", 1000, "strong").await;
    // The damaged one goes when the restored one covers all of the log.
    eventually("it goes", PATIENCE, async || (!data_dir.join("checkpoint.damaged").exists()).then_some(()))
        .await;
}

/// Between a restore and the moment in which all of the log is applied again, a member may be killed as often as
/// anybody likes.
#[tokio::test]
async fn a_kill_behind_a_restore_is_a_kill_like_any_other() {
    let arguments = [&SMALL[..], &["--kept-log-entries", "20"]].concat();
    let mut cluster = Cluster::start_with(1, &arguments).await;
    fill(&cluster, 0, "goes", 2000).await;
    fill(&cluster, 0, "stays", 100).await;
    wait_until_purged(&cluster).await;
    let (log_dir, data_dir) = (log_dir(&cluster, 0), cluster.members[0].data_dir.clone());
    eventually("there is a fresh export", PATIENCE, async || {
        cluster.append(0, "filler", json!("x".repeat(10_000))).await.expect("append");
        (exported_index(&data_dir) >= 220).then_some(())
    })
    .await;
    let kept = names(&log_dir, ".kept").len();
    cluster.client.delete(&cluster.topic_url(0, "goes")).await.expect("delete a topic");
    eventually("what it held is freed", PATIENCE, async || {
        (names(&log_dir, ".kept").len() <= kept / 2).then_some(())
    })
    .await;
    cluster.kill(0);
    damage_checkpoint(&cluster, 0);
    for round in 0..3 {
        cluster.spawn(0);
        eventually("it was restored, now or before", PATIENCE, async || {
            assert!(cluster.members[0].is_running(), "round {round}: it starts");
            data_dir.join("restored").exists().then_some(())
        })
        .await;
        // Not before it has seen what it has.
        if round > 0 {
            eventually("it has started", PATIENCE, async || {
                assert!(cluster.members[0].is_running(), "round {round}: it starts");
                (lines_with(&cluster, 0, "serves clients").len() > round).then_some(())
            })
            .await;
            break;
        }
        cluster.kill(0);
    }
    cluster.wait_ready(0).await;
    assert!(cluster.client.get(&cluster.topic_url(0, "goes")).await.is(404), "it stays deleted");
    expect_filled(&cluster, 0, "stays", 100, "strong").await;
    eventually("all is there, and that is settled", PATIENCE, async || {
        assert!(cluster.members[0].is_running());
        (!data_dir.join("restored").exists()).then_some(())
    })
    .await;
}

fn lose_store(data_dir: &Path) {
    for name in ["log", "checkpoint"] {
        fs::remove_dir_all(data_dir.join(name)).expect("remove it");
    }
}

/// An identity without a log is no blank member: it never speaks under the old id.
#[tokio::test]
async fn an_identity_that_lost_its_store_never_speaks_again() {
    let mut cluster = Cluster::start_with(3, &SMALL).await;
    fill(&cluster, 0, "t", 50).await;
    let victim = cluster.follower().await;
    cluster.kill(victim);
    let data_dir = cluster.members[victim].data_dir.clone();
    let old_id = node_id(&data_dir);
    lose_store(&data_dir);
    cluster.spawn(victim);
    eventually("it starts under a new id", PATIENCE, async || {
        assert!(cluster.members[victim].is_running(), "it goes on");
        (lines_with(&cluster, victim, "starts blank under a new id").len() == 1).then_some(())
    })
    .await;
    assert_ne!(node_id(&data_dir), old_id);
    drop(cluster);

    let mut cluster = Cluster::start_with(1, &SMALL).await;
    fill(&cluster, 0, "t", 50).await;
    cluster.kill(0);
    let data_dir = cluster.members[0].data_dir.clone();
    lose_store(&data_dir);
    let before = names(&data_dir, "");
    let line = refusal_of(&mut cluster, 0).await;
    assert!(line.contains("is missing") && line.contains("restore a backup"), "{line}");
    assert_eq!(names(&data_dir, ""), before);
}

/// A process that holds a small file system, which only it and those who join it see.
struct SmallDisk {
    holder: std::process::Child,
    dir: PathBuf,
}

impl SmallDisk {
    /// `None` where a process may not mount anything.
    fn mount(dir: &Path, mebibytes: u32) -> Option<SmallDisk> {
        let script = format!(
            "mount -t tmpfs -o size={mebibytes}m tmpfs '{}' && touch '{0}/mounted' && exec cat",
            dir.display()
        );
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let inside = PathBuf::from(format!("/proc/{}/root{}", holder.id(), dir.display()));
        for _ in 0..500 {
            if inside.join("mounted").exists() {
                return Some(SmallDisk { holder, dir: inside });
            }
            if holder.try_wait().ok()?.is_some() {
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = holder.kill();
        let _ = holder.wait();
        None
    }

    /// `command`, among those who see the file system.
    fn inside(&self, command: &Command) -> Command {
        let mut joined = Command::new("nsenter");
        let target = self.holder.id().to_string();
        joined.args(["--target", &target, "--user", "--mount", "--preserve-credentials", "--"]);
        joined.arg(command.get_program()).args(command.get_args());
        joined
    }

    /// Takes all that is free. By `write`, as reserving all at once may fail.
    fn fill(&self) {
        use std::io::Write;
        let mut file = fs::File::create(self.dir.join("filler")).expect("make a file");
        for size in [1 << 20, 4096, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
        let figures = rustix::fs::statvfs(&self.dir).expect("measure it");
        assert_eq!(figures.f_bavail, 0, "it is full");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// A disk that others filled to the last byte: a member that was killed then starts, serves reads and deletes, and what
/// is deleted makes room for the next start.
#[tokio::test]
async fn a_member_starts_with_no_byte_free_and_serves_reads_and_deletes() {
    let permit = one_cluster().await;
    let dir = tempfile::tempdir().expect("make a directory");
    let Some(small) = SmallDisk::mount(dir.path(), 256) else {
        println!("not tried: this process may not mount a file system of its own");
        return;
    };
    let arguments = [&SMALL[..], &["--min-free-bytes", "20MiB", "--kept-log-entries", "20"]].concat();
    let other = tempfile::tempdir().expect("make a directory");
    let mut cluster = Cluster::start_in(other, Some(permit), 1, &arguments).await;
    cluster.kill(0);
    cluster.members[0].data_dir = dir.path().join("data");
    let start = |cluster: &mut Cluster| {
        let command = small.inside(&cluster.command(0));
        cluster.spawn_as(0, command);
    };
    start(&mut cluster);
    cluster.wait_ready(0).await;
    fill(&cluster, 0, "goes", 1000).await;
    fill(&cluster, 0, "stays", 100).await;
    let data_dir = small.dir.join("data");
    eventually("space is kept for a start", PATIENCE, async || {
        data_dir.join("ballast").exists().then_some(())
    })
    .await;
    for round in 0..2 {
        small.fill();
        cluster.kill(0);
        start(&mut cluster);
        cluster.wait_ready(0).await;
        expect_filled(&cluster, 0, "stays", 100, "strong").await;
        if round == 0 {
            assert_eq!(cluster.append(0, "stays", json!(1)).await.status(), Some(503));
        }
        cluster.client.delete(&cluster.topic_url(0, &format!("other{round}"))).await.expect("delete");
    }
    cluster.client.delete(&cluster.topic_url(0, "goes")).await.expect("delete");
    let used = || fs::read_dir(data_dir.join("log")).expect("list").count();
    let before = used();
    eventually("what was deleted is freed", PATIENCE, async || (used() * 2 < before).then_some(())).await;
    fs::remove_file(small.dir.join("filler")).expect("make room");
    eventually("records are taken again", PATIENCE, async || {
        cluster.append(0, "after", json!(1)).await.is(200).then_some(())
    })
    .await;
}
