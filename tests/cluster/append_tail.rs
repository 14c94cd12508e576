//! `antiphon append` and `antiphon tail`, as a person and as a script use them.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{Cluster, PATIENCE, antiphon, eventually, free_ports};
use crate::settings::one_line;

/// The command `verb` on `topic`, with the members that it may ask.
fn command(verb: &str, topic: &str, urls: &[String], arguments: &[&str]) -> Command {
    let mut command = antiphon();
    command.args([verb, topic, "--url", &urls.join(",")]).args(arguments).stdin(Stdio::null());
    command
}

/// Runs it to its end, which must be a good one, with `stdin`; gives what it printed.
fn run(mut command: Command, stdin: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start antiphon");
    let mut pipe = child.stdin.take().expect("stdin was piped");
    let stdin = stdin.to_owned();
    let writer = std::thread::spawn(move || pipe.write_all(stdin.as_bytes()));
    let output = child.wait_with_output().expect("wait for antiphon");
    // One that asks for no input may end before it is all written.
    let _ = writer.join().expect("the writer does not panic");
    assert!(output.status.success(), "{output:?}");
    output
}

fn stdout(command: Command, stdin: &str) -> String {
    let output = run(command, stdin);
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A `tail` that runs, and the lines that it has printed. It dies with the test.
struct Tail {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Tail {
    fn start(mut command: Command) -> Tail {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("start antiphon tail");
        let reader = BufReader::new(child.stdout.take().expect("stdout was piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            reader.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Tail { child, lines }
    }

    fn line(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("a line in time");
        serde_json::from_str(&line).expect("a line of JSON")
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a pid"), signal).expect("send a signal");
    }

    /// The exit code, once it has ended.
    async fn code(&mut self) -> Option<i32> {
        eventually("tail ends", PATIENCE, async || self.child.try_wait().expect("wait for tail")).await.code()
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn seqs(lines: &str) -> Vec<u64> {
    let seq = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["$seq"].as_u64();
    lines.lines().map(|line| seq(line).expect("a seq")).collect()
}

#[tokio::test]
async fn what_append_takes_is_what_tail_prints() {
    let cluster = Cluster::start(3).await;
    let urls = cluster.urls();
    let append = |arguments: &[&str]| command("append", "orders", &urls, arguments);
    let tail = |arguments: &[&str]| command("tail", "orders", &urls, arguments);

    // Arguments: one request, data as written, text as a string.
    let printed =
        stdout(append(&["{\"sum\": 19.90}", "plain text", "-5", "--tag", "new", "--node", "n1"]), "");
    assert_eq!(printed, "1\n2\n3\n");
    // Lines: in their order, however they are batched, without empty ones.
    assert_eq!(stdout(append(&["--batch", "2"]), "{\"n\":4}\n\n[5]\r\nsix\n7\n8"), "4\n5\n6\n7\n8\n");
    let many: String = (9..=1000).map(|number| format!("{number}\n")).collect();
    assert_eq!(stdout(append(&["--batch", "300"]), &many), many);
    let answer: Value = serde_json::from_str(&stdout(append(&["--json", "1", "2"]), "")).expect("one line");
    assert_eq!((&answer["seqs"], &answer["deduped"]), (&json!([1001, 1002]), &json!(false)));

    // For programs: all of it, as it was written, once.
    let all = stdout(tail(&["--from", "start", "--no-follow", "--json"]), "");
    assert_eq!(seqs(&all), (1..=1002).collect::<Vec<u64>>());
    let lines: Vec<&str> = all.lines().collect();
    assert!(lines[0].contains(r#""$node":"n1","$tag":"new","data":{"sum":19.90}"#), "{}", lines[0]);
    assert!(lines[1].ends_with(r#""data":"plain text"}"#) && lines[2].ends_with(r#""data":-5}"#), "{all}");
    assert!(lines[5].ends_with(r#""data":"six"}"#) && lines[998].ends_with(r#""data":999}"#));

    // For people: seq, time, labels, data.
    let printed = stdout(tail(&["--from", "3", "-n", "2"]), "");
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((lines[0][0], &lines[0][2..]), ("3", &["node=n1", "tag=new", "-5"][..]), "{printed}");
    assert_eq!((lines[1][0], &lines[1][2..]), ("4", &["{\"n\":4}"][..]), "{printed}");
    assert!(lines[0][1].starts_with("20") && lines[0][1].ends_with('Z'), "{printed}");

    // Other places to begin, and labels left out.
    let ts = cluster.diff(0, "orders", "strong").await.expect("read")["records"][3]["$ts"].to_string();
    let from_ts = stdout(tail(&["--from-ts", &ts, "-n", "1", "--json"]), "");
    assert!(from_ts.contains(&format!("\"$ts\":{ts},")), "{from_ts}");
    let others = ["--from", "start", "--node", "n1,n2", "-n", "1", "--json"];
    assert_eq!(seqs(&stdout(tail(&others), "")), [4]);
    assert_eq!(stdout(tail(&["--no-follow"]), ""), "");
    let filtered = ["--from", "start", "--no-follow", "--filter", "[\"data.sum\",\"Gt\",19]", "--json"];
    assert_eq!(seqs(&stdout(tail(&filtered), "")), [1]);
    let line = one_line(tail(&["--from", "start", "--filter", "[1]"]), 1);
    assert!(line.contains("400 invalid_request"), "{line}");

    // What is gone is told, with its exact range.
    let config = json!({ "cap_records": 3 });
    cluster.client.put(&cluster.topic_url(0, "small"), &config).await.expect("make a topic");
    stdout(command("append", "small", &urls, &["1", "2", "3", "4", "5"]), "");
    let from_start = ["--from", "start", "--no-follow"];
    let output = run(command("tail", "small", &urls, &from_start), "");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "antiphon: seqs 1 to 2 of small are gone: cap\n");
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 3);
    let lines = stdout(command("tail", "small", &urls, &[&from_start[..], &["--json"]].concat()), "");
    let first: Value = serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
    assert_eq!((&first["tombstone"]["gap_from"], &first["tombstone"]["gap_to"]), (&json!(1), &json!(2)));
    assert_eq!(lines.lines().count(), 4);
}

#[tokio::test]
async fn tail_goes_on_at_another_member_without_loss_or_repetition() {
    const RECORDS: u64 = 60;
    let mut cluster = Cluster::start(3).await;
    stdout(command("append", "orders", &cluster.urls(), &["0"]), "");
    // The member that it reads from is the leader, so that the others have none for a while.
    let first = cluster.leader().await;
    let mut urls = cluster.urls();
    urls.rotate_left(first);
    let lines = (RECORDS - 1).to_string();
    let mut tail = Tail::start(command("tail", "orders", &urls, &["--json", "-n", &lines]));
    // From the end on: wait until it stands there, which only a record can show.
    let mut appended = 1;
    let first_seq = eventually("tail prints what comes", PATIENCE, async || {
        appended += 1;
        stdout(command("append", "orders", &urls, &["1"]), "");
        tail.lines.recv_timeout(Duration::from_millis(200)).ok()
    })
    .await;
    let mut seen = seqs(&first_seq);
    for number in 0..urls.len() {
        let state = cluster.client.get(&format!("{}?touch=false", cluster.topic_url(number, "orders"))).await;
        let is_read = !state.expect("the state")["last_read_ts"].is_null();
        assert_eq!(is_read, number == first, "it reads from the first member that it is given");
    }

    // Over the kill, and over the return of the member, records come at the two others and at it.
    for number in 0..RECORDS {
        if number == 10 {
            cluster.kill(first);
        }
        if number == 40 {
            cluster.restart(first).await;
        }
        stdout(command("append", "orders", &urls, &["--no-create", "2"]), "");
        appended += 1;
    }
    while (seen.len() as u64) < RECORDS - 1 {
        seen.push(tail.line()["$seq"].as_u64().expect("a seq"));
    }
    assert_eq!(tail.code().await, Some(0), "it ends after -n records");
    let expected: Vec<u64> = (seen[0]..seen[0] + RECORDS - 1).collect();
    assert_eq!(seen, expected);
    // Each append took effect once.
    cluster.wait_all_ready().await;
    let head = cluster.diff(0, "orders", "strong").await.expect("read")["head_seq"].as_u64();
    assert_eq!(head, Some(appended));
}

/// A member that hands one request to the one at `port`, and is gone before the answer is.
fn dies_before_it_answers(port: u16) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let handle = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        drop(listener);
        let mut member = TcpStream::connect(("127.0.0.1", port)).expect("connect to the member");
        let mut to_member = member.try_clone().expect("clone a socket");
        let mut from_client = client.try_clone().expect("clone a socket");
        let there = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_client, &mut to_member);
        });
        // The answer has begun: the request has taken effect.
        member.read_exact(&mut [0; 12]).expect("an answer");
        client.write_all(b"HTTP/1.1").expect("write half a line");
        client.shutdown(std::net::Shutdown::Both).expect("close");
        member.shutdown(std::net::Shutdown::Both).expect("close");
        there.join().expect("the copy ends");
    });
    (url, handle)
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_takes_effect_once() {
    let cluster = Cluster::start(1).await;
    let (url, handle) = dies_before_it_answers(cluster.members[0].client_port);
    let mut urls = cluster.urls();
    // Nobody listens at the first one.
    urls.insert(0, format!("http://127.0.0.1:{}", free_ports(1)[0]));
    urls.insert(1, url);
    let answer = stdout(command("append", "orders", &urls, &["--json", "1", "2"]), "");
    handle.join().expect("the request came by");
    let answer: Value = serde_json::from_str(&answer).expect("one line");
    assert_eq!((&answer["deduped"], &answer["seqs"]), (&json!(true), &json!([1, 2])));
    let page = cluster.diff(0, "orders", "strong").await.expect("read");
    assert_eq!(page["head_seq"], 2);
}

#[tokio::test]
async fn append_and_tail_end_as_scripts_expect() {
    let cluster = Cluster::start_with(1, &["--api-keys", "hunter2"]).await;
    let urls = cluster.urls();
    let with_key = |verb, topic, arguments: &[&str]| {
        let mut command = command(verb, topic, &urls, arguments);
        command.env("ANTIPHON_KEY", "hunter2");
        command
    };
    assert_eq!(stdout(with_key("append", "orders", &["1"]), ""), "1\n");
    let line = one_line(command("append", "orders", &urls, &["1", "--key", "hunter3"]), 1);
    assert!(line.contains("401 unauthorized") && !line.contains("hunter3"), "{line}");
    let line = one_line(with_key("append", "nothing", &["1", "--no-create"]), 1);
    assert!(line.contains("append to nothing: ") && line.contains("404 topic_not_found"), "{line}");
    let line = one_line(with_key("tail", "nothing", &[]), 1);
    assert!(line.contains("read nothing: ") && line.contains("404 topic_not_found"), "{line}");

    // Ctrl-C and SIGTERM are how following ends.
    for signal in [Signal::INT, Signal::TERM] {
        let mut tail = Tail::start(with_key("tail", "orders", &["--from", "start", "--json"]));
        assert_eq!(tail.line()["data"], 1);
        tail.signal(signal);
        assert_eq!(tail.code().await, Some(0));
    }
    // Nobody reads any more.
    let mut child = with_key("tail", "orders", &["--from", "start"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start antiphon tail");
    let mut reader = BufReader::new(child.stdout.take().expect("stdout was piped"));
    reader.read_line(&mut String::new()).expect("a line");
    drop(reader);
    assert_eq!(stdout(with_key("append", "orders", &["2"]), ""), "2\n");
    let status = eventually("tail ends", PATIENCE, async || child.try_wait().expect("wait for tail")).await;
    let mut said = String::new();
    child.stderr.take().expect("stderr was piped").read_to_string(&mut said).expect("read stderr");
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));

    // Bad input: nothing behind it is appended, what lies before it is.
    let mut command = with_key("append", "orders", &["--json"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start antiphon append");
    child.stdin.take().expect("stdin was piped").write_all(b"3\nno JSON\n5\n").expect("write lines");
    let output = child.wait_with_output().expect("wait for antiphon");
    assert_eq!((output.status.code(), &output.stdout[..1]), (Some(1), &b"{"[..]), "{output:?}");
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(line.lines().count() == 1 && line.contains("line 2 of stdin: no JSON"), "{line}");
    assert!(line.contains("1 record appended before"), "{line}");
    let tail = stdout(with_key("tail", "orders", &["--from", "start", "--no-follow", "--json"]), "");
    assert_eq!(seqs(&tail), [1, 2, 3]);
}

#[test]
fn append_and_tail_name_what_is_wrong_in_one_line() {
    let nobody = format!("http://127.0.0.1:{}", free_ports(1)[0]);
    for (arguments, code, part) in [
        (&["append", "a/b", "1"][..], 2, "TOPIC \"a/b\""),
        (&["append"], 2, "<TOPIC> is missing"),
        (&["append", "t", "{", "--json"], 2, "record 1: no JSON"),
        (&["append", "t", "1", "--create", "--no-create"], 2, "exclude each other"),
        (&["append", "t", "1", "--url", "m1:4000"], 2, "http://host:port"),
        (&["append", "t", "--batch", "0"], 2, "--batch"),
        (&["append", "t", "1"], 1, "refused"),
        (&["tail", "t", "--from", "middle"], 2, "a seq, start and end"),
        (&["tail", "t", "--from", "1", "--from-ts", "1"], 2, "exclude each other"),
        (&["tail", "t", "--filter", "x*"], 2, "--filter is no JSON"),
        (&["tail", "t", "--from", "start"], 1, "refused"),
    ] {
        let mut command = antiphon();
        command.args(arguments).env("ANTIPHON_URL", &nobody).stdin(Stdio::null());
        let line = one_line(command, code);
        assert!(line.contains(part), "{arguments:?}: {line}");
    }
    let help = antiphon().args(["tail", "--help"]).env("ANTIPHON_KEY", "hunter2").output().expect("help");
    assert!(help.status.success() && !String::from_utf8_lossy(&help.stdout).contains("hunter2"));
}
