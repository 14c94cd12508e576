//! `antiphon bench`: figures that add up, and none when what it measures is not true.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Output;

use serde_json::Value;

use crate::harness::{Cluster, antiphon, one_cluster};

/// Runs `bench` with a temporary directory of its own; gives its output, once nothing is left there.
async fn bench(arguments: &str) -> Output {
    let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let run = move || {
        let dir = tempfile::tempdir().expect("make a directory");
        let output = antiphon().arg("bench").args(arguments).env("TMPDIR", dir.path()).output();
        let left: Vec<_> = std::fs::read_dir(dir.path()).expect("list a directory").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        output.expect("run antiphon bench")
    };
    tokio::task::spawn_blocking(run).await.expect("bench ran")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// What holds for every run. Each append carries all of `records_per_op`; a page at the head of its topic may
/// hold fewer.
fn adds_up(report: &Value, seconds: f64, records_per_op: u64) {
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).expect(pointer);
    let ops = number("/ops");
    assert!(ops > 0.0, "{report}");
    let missing = ops * records_per_op as f64 - number("/records");
    let allowed = if report["verb"] == "read" { ops * records_per_op as f64 / 10.0 } else { 0.5 };
    assert!((-0.5..=allowed).contains(&missing), "{report}");
    // The last answers may come a little after the time is over.
    let is_near = |rate: f64, exact: f64| (rate - exact).abs() < 1.0 + exact / 20.0;
    assert!(is_near(number("/ops_per_s"), ops / seconds), "{report}");
    assert!(is_near(number("/records_per_s"), number("/records") / seconds), "{report}");
    assert!(number("/errors/count") < 0.5, "{report}");
    assert!((number("/verified/acked_records") - number("/verified/head_sum")).abs() < 0.5, "{report}");
    let latencies = ["p50", "p99", "p99_9", "max"].map(|name| number(&format!("/latency_ms/{name}")));
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{report}");
    // One thread: no more than all of one core (and what reading the clocks takes).
    assert!((0.0..seconds * 1.2).contains(&number("/cpu/client_s")), "{report}");
}

#[tokio::test]
async fn what_bench_reports_of_an_own_cluster_adds_up() {
    let _permit = one_cluster().await;
    let arguments =
        "append --local --duration-s 1 --warmup-s 0.5 --connections 8 --batch 3 --topics 2 --json";
    let report = json(&bench(arguments).await);
    adds_up(&report, 1.0, 3);
    // More was acked than was measured: the warm-up.
    assert!(report["verified"]["acked_records"].as_u64() > report["records"].as_u64(), "{report}");
    let members = report["members"].as_array().expect("members");
    assert_eq!(members.len(), 3);
    let payload_bytes = report["records"].as_u64().expect("records") * 256;
    for member in members {
        assert!(member["cpu_s"].as_f64() > Some(0.0), "{report}");
        // Each has all records: it wrote at least what was appended, as it was written before it was acked
        // (by two of three; the third may be a little behind).
        assert!(member["wchar_bytes"].as_u64() > Some(payload_bytes / 2), "{report}");
        assert!(member["written_bytes"].as_u64() > Some(payload_bytes / 2), "{report}");
    }
    let cpu_s: f64 = members.iter().filter_map(|member| member["cpu_s"].as_f64()).sum();
    assert!((report["cpu"]["members_s"].as_f64().expect("members_s") - cpu_s).abs() < 0.01, "{report}");
}

#[tokio::test]
async fn bench_reads_back_what_it_appended_in_open_loop_at_followers() {
    let _permit = one_cluster().await;
    let arguments = "read --duration-s 1 --warmup-s 0 --connections 3 --page 50 --preload 2000 --rate 100 \
                     --batch 100 --follower --topics 2 --json";
    let report = json(&bench(arguments).await);
    adds_up(&report, 1.0, 50);
    assert_eq!(report["verified"]["head_sum"], 2000);
    // 100 are due; those of the last instants may end after the second.
    assert!((50..=101).contains(&report["ops"].as_u64().expect("ops")), "{report}");
    assert_eq!(report["unsent"], 0, "{report}");
}

#[tokio::test]
async fn bench_watch_counts_every_record_at_every_watcher() {
    let _permit = one_cluster().await;
    let arguments = "watch --watchers 5 --duration-s 1 --warmup-s 0.5 --batch 2 --rate 50 --follower --json";
    let report = json(&bench(arguments).await);
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).expect(pointer);
    // What was published in the window came in it, but for what was on its way at either end.
    let missing = (5.0 * number("/published") - number("/deliveries")).abs();
    assert!(number("/published") > 20.0 && missing < 50.0, "{report}");
    assert!(number("/frames") <= number("/deliveries"), "{report}");
    assert!(number("/verified/head_seq") >= number("/published"), "{report}");
    let latencies = ["p50", "p99", "p99_9", "max"].map(|name| number(&format!("/delivery_ms/{name}")));
    assert!(latencies[0] > 0.0 && latencies.is_sorted(), "{report}");
}

#[tokio::test]
async fn bench_watch_tells_what_idle_streams_cost() {
    let _permit = one_cluster().await;
    let report = json(&bench("watch --idle --watchers 200 --leader --json").await);
    let members = report["members"].as_array().expect("members");
    assert_eq!(members.len(), 3, "{report}");
    for member in members {
        assert!(member["before_bytes"].as_u64() > Some(1 << 20), "{report}");
    }
    // A connection has buffers; and the rest of a member does not grow by much in two seconds.
    let bytes_each = report["bytes_each"].as_u64().expect("bytes_each");
    assert!((1 << 10..1 << 18).contains(&bytes_each), "{report}");
    assert!(report["reached_in_ms"].as_f64() > Some(0.0), "{report}");
}

/// Answers every request as a server does that makes topics and gives every append the seq 1.
fn liar() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut bytes = [0u8; 4096];
                // Requests are small, sent with one write, and one at a time.
                while stream.read(&mut bytes).is_ok_and(|length| length > 0) {
                    let body = r#"{"first_seq":1,"last_seq":1,"head_seq":1}"#;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    if stream.write_all((head + body).as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn a_seq_acked_twice_ends_bench_with_one_line_and_no_figures() {
    let output = bench(&format!("append --connections 1 --url {}", liar())).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("seqs 1 to 1 were acked, though 1 to 1 had been before"), "{line}");
}

#[tokio::test]
async fn bench_names_what_it_cannot_do_in_one_line() {
    for (arguments, code, part) in [
        ("append --leader --follower", 2, "exclude each other"),
        ("append --url http://127.0.0.1:1", 1, "connect to http://127.0.0.1:1"),
    ] {
        let output = bench(arguments).await;
        let line = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert!(line.lines().count() == 1 && line.contains(part), "{line}");
    }
}

#[tokio::test]
async fn a_cluster_with_keys_can_be_measured() {
    let cluster = Cluster::start_with(1, &["--api-keys", "all,reader:r"]).await;
    let url = cluster.members[0].url();
    let arguments = "--duration-s 0.5 --warmup-s 0 --connections 2 --json";
    for verb in ["append", "read --preload 1000", "watch --watchers 3 --rate 50"] {
        let report = json(&bench(&format!("{verb} {arguments} --leader --url {url} --key all")).await);
        let errors = &report["errors"];
        assert!(*errors == 0 || errors["count"] == 0, "{report}");
    }
    let output = bench(&format!("append {arguments} --url {url} --key reader")).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("403"), "{output:?}");
}
