//! `antiphon health`, as a container's health check runs it.

use std::process::Command;

use crate::harness::{Cluster, PATIENCE, antiphon, eventually, free_ports};
use crate::settings::one_line;

/// The check as it runs beside a member that listens on all addresses.
fn check(port: u16, arguments: &[&str]) -> Command {
    let mut command = antiphon();
    command
        .args(["health", "--timeout-ms", "5000"])
        .args(arguments)
        .env("ANTIPHON_HOST", "0.0.0.0")
        .env("ANTIPHON_PORT", port.to_string());
    command
}

fn passes(mut command: Command) -> bool {
    let output = command.output().expect("run antiphon");
    assert!(output.stdout.is_empty(), "it talks: {}", String::from_utf8_lossy(&output.stdout));
    output.status.success() && output.stderr.is_empty()
}

#[tokio::test]
async fn health_tells_alive_from_ready_and_both_from_gone() {
    let mut cluster = Cluster::start(3).await;
    let port = cluster.members[0].client_port;
    assert!(passes(check(port, &[])) && passes(check(port, &["--ready"])));
    let mut by_url = antiphon();
    by_url.args(["health", "--ready", "--url", &cluster.members[1].url()]);
    assert!(passes(by_url));

    // Alone it cannot have a leader, yet it lives.
    cluster.kill(1);
    cluster.kill(2);
    eventually("a member alone is not ready", PATIENCE, async || {
        (!passes(check(port, &["--ready"]))).then_some(())
    })
    .await;
    let line = one_line(check(port, &["--ready"]), 1);
    assert!(line.contains("/v0/ready answers 503 not_ready: "), "{line}");
    assert!(passes(check(port, &[])));

    cluster.kill(0);
    let line = one_line(check(port, &[]), 1);
    assert!(line.contains(&format!("127.0.0.1:{port}")) && line.contains("refused"), "{line}");
}

/// C-AUTH-19
#[tokio::test]
async fn health_presents_a_key() {
    let mut cluster = Cluster::start_with(1, &["--api-keys", "first:r,second"]).await;
    // Only now, as the harness itself asks without a key.
    cluster.members[0].terminate().await;
    let mut command = cluster.command(0);
    command.args(["--probe-auth", "1"]);
    cluster.spawn_as(0, command);
    let port = cluster.members[0].client_port;
    let with = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = check(port, arguments);
        command.env(name, value);
        command
    };
    eventually("it is ready", PATIENCE, async || {
        passes(with("ANTIPHON_KEY", "second", &["--ready"])).then_some(())
    })
    .await;
    assert!(passes(check(port, &["--key", "first"])));
    // As in the member's own container.
    assert!(passes(with("ANTIPHON_API_KEYS", "first:r,second", &[])));
    let url = format!("http://127.0.0.1:{port}");
    for refused in [
        check(port, &[]),
        check(port, &["--key", "third"]),
        // A key of this machine's member is not for others.
        with("ANTIPHON_API_KEYS", "first", &["--url", &url]),
    ] {
        assert!(one_line(refused, 1).contains("401"));
    }
}

#[test]
fn health_waits_no_longer_than_it_is_told_and_names_a_bad_address() {
    let port = free_ports(1)[0];
    // Takes connections, as the kernel does for it, and never answers.
    let _silent = std::net::TcpListener::bind(("127.0.0.1", port)).expect("bind a port");
    let mut command = antiphon();
    command.args(["health", "--timeout-ms", "100", "--url", &format!("http://127.0.0.1:{port}")]);
    let line = one_line(command, 1);
    assert!(line.contains("did not answer within 100 ms"), "{line}");

    let mut command = antiphon();
    command.args(["health", "--url", "m1:4000"]);
    assert!(one_line(command, 2).contains("http://host:port"));
    let mut command = antiphon();
    command.arg("health").env("ANTIPHON_PORT", "tcp://10.0.0.1:4000");
    assert!(one_line(command, 2).contains("ANTIPHON_PORT"));
}
