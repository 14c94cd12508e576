//! The command line and the environment, as an operator meets them.

use std::process::{Command, Output};

use crate::harness::antiphon;

/// The one line that `command` leaves on stderr when it ends with `code`.
pub fn one_line(mut command: Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().expect("run antiphon");
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "stderr: {stderr}");
    assert!(stdout.is_empty(), "stdout: {}", String::from_utf8_lossy(&stdout));
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("antiphon: "), "not one line: {stderr}");
    lines[0].to_owned()
}

#[track_caller]
fn refused(arguments: &[&str], variables: &[(&str, &str)], parts: &[&str]) -> String {
    let mut command = antiphon();
    command.args(arguments).envs(variables.iter().copied());
    let line = one_line(command, 2);
    parts.iter().for_each(|part| assert!(line.contains(part), "{part:?} is not in: {line}"));
    line
}

#[test]
fn a_mistake_is_one_line_that_names_setting_value_and_what_is_allowed() {
    refused(&["serve", "--prot", "1"], &[], &["--prot", "--port"]);
    refused(&["sevre"], &[], &["sevre", "serve"]);
    refused(&["serve", "--port", "x"], &[], &["--port", "\"x\"", "1 to 65535"]);
    refused(
        &["serve", "--request-timeout-ms", "-1"],
        &[],
        &["--request-timeout-ms", "\"-1\"", "whole number"],
    );
    refused(&["serve"], &[("ANTIPHON_HEARTBEAT_MS", "fast")], &["ANTIPHON_HEARTBEAT_MS", "fast"]);
    refused(&["serve", "--host", "0.0.0.0"], &[], &["--host", "api_keys", "allow_insecure_no_auth"]);
    refused(&["dev", "--base-port", "0"], &[], &["base-port"]);
}

#[test]
fn keys_that_cannot_be_used_are_a_wrong_setting() {
    let keys = [("ANTIPHON_API_KEYS", "good,hunter2:x")];
    let line = refused(&["serve"], &keys, &["api_keys", "entry 2"]);
    assert!(!line.contains("hunter2"), "{line}");
}

#[test]
fn the_last_line_is_json_where_the_log_is() {
    let run = |arguments: &[&str]| {
        let output = antiphon().args(["serve", "--log-format", "json"]).args(arguments).output();
        let output = output.expect("run antiphon");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut lines =
            stderr.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line));
        (output.status.code(), lines.next_back().expect("a line"))
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("a port").port().to_string();
    let dir = tempfile::tempdir().expect("make a directory");
    let dir = dir.path().to_str().expect("a path");
    let (code, line) = run(&["--port", &port, "--data-dir", dir, "--log", "off"]);
    let message = line["message"].as_str().expect("a message");
    assert!(code == Some(1) && message.contains(&port) && line["level"] == "ERROR", "{line}");
    let (code, line) = run(&["--port", "x"]);
    assert!(code == Some(2) && line["message"].as_str().is_some_and(|it| it.contains("--port")), "{line}");
}

#[test]
fn variables_of_clients_are_no_mistake() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("a port").port().to_string();
    let mut command = antiphon();
    command.args(["serve", "--port", &port]).env("ANTIPHON_URL", "http://m1:4000").env("ANTIPHON_KEY", "k");
    // But for the warning that there are no keys this is the only line.
    command.env("ANTIPHON_LOG", "error");
    assert!(one_line(command, 1).contains(&port));
    let mut command = antiphon();
    command.args(["serve", "--port", &port]).envs([("ANTIPHON_KEY", "k"), ("ANTIPHON_KEZ", "k")]);
    let output = command.output().expect("run antiphon");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ANTIPHON_KEZ") && !text.contains("ANTIPHON_KEY"), "{text}");
}

#[test]
fn help_is_a_command_too() {
    for arguments in [&["help"][..], &["help", "serve"]] {
        let output = antiphon().args(arguments).output().expect("run antiphon");
        assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn a_service_link_in_the_port_variable_is_explained() {
    let link = [("ANTIPHON_PORT", "tcp://10.0.0.1:4000")];
    refused(&["serve"], &link, &["ANTIPHON_PORT", "tcp://10.0.0.1:4000", "service", "--port"]);
}

#[test]
fn a_flag_wins_over_its_variable() {
    refused(&["serve", "--port", "0"], &[("ANTIPHON_PORT", "4000")], &["--port \"0\""]);
}

#[test]
fn a_secret_is_never_shown() {
    let line = refused(&["serve", "--cluster-secret", "hunter2"], &[], &["--cluster-secret", "16"]);
    assert!(!line.contains("hunter2"), "{line}");
    let line = refused(&["serve"], &[("ANTIPHON_CLUSTER_SECRET", "hunter2")], &["ANTIPHON_CLUSTER_SECRET"]);
    assert!(!line.contains("hunter2"), "{line}");
    let help = antiphon()
        .args(["serve", "--help"])
        .env("ANTIPHON_CLUSTER_SECRET", "hunter2")
        .env("ANTIPHON_API_KEYS", "hunter2")
        .output()
        .expect("run antiphon");
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(help.status.success() && text.contains("--cluster-secret-file"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn no_command_is_a_short_help() {
    let output = antiphon().output().expect("run antiphon");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("serve") && text.contains("dev"), "{text}");
    assert!(text.lines().count() < 20, "not short:\n{text}");
}
