//! `antiphon dev`: a cluster of three members on this machine, to try things on.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use tokio::signal::unix::{SignalKind, signal};

use super::fail;
use super::local_cluster::{LocalCluster, Place};

const MEMBERS: u16 = 3;
/// A member's peer port is this far above its client port.
const PEER_PORT_OFFSET: u16 = 100;

pub(super) fn command() -> Command {
    let highest = i64::from(u16::MAX - PEER_PORT_OFFSET - MEMBERS);
    Command::new("dev")
        .about("Run a cluster of three members on this machine")
        .arg(
            Arg::new("base-port")
                .long("base-port")
                .value_name("PORT")
                .value_parser(value_parser!(u16).range(1..=highest))
                .default_value("4000")
                .help("Clients on PORT+1 to PORT+3, members among themselves on PORT+101 to PORT+103"),
        )
        .arg(
            Arg::new("dir")
                .long("dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .default_value("./antiphon-dev")
                .help("Directory for the members' data and logs"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> ExitCode {
    // Both have defaults.
    let base_port = matches.get_one::<u16>("base-port").copied().unwrap_or(4000);
    let dir = matches.get_one::<PathBuf>("dir").cloned().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result =
        runtime.context("start the runtime").and_then(|runtime| runtime.block_on(dev(base_port, &dir)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, &format!("{error:#}")),
    }
}

async fn dev(base_port: u16, dir: &Path) -> anyhow::Result<()> {
    let places: Vec<Place> = (1..=MEMBERS)
        .map(|number| Place {
            name: format!("m{number}"),
            client_port: base_port + number,
            peer_port: base_port + PEER_PORT_OFFSET + number,
        })
        .collect();
    for place in &places {
        check_port(place.client_port)?;
        check_port(place.peer_port)?;
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;

    let mut cluster = LocalCluster::start(dir, "dev", places)?;
    println!("data and logs are in {} (m1.log, m2.log, m3.log)", dir.display());
    tokio::select! {
        biased;
        _ = interrupt.recv() => return stop(cluster).await,
        _ = terminate.recv() => return stop(cluster).await,
        ready = cluster.wait_ready() => match ready {
            Ok(leader) => println!("{}", greeting(cluster.places(), &cluster.pids(), &leader)),
            Err(error) => {
                stop(cluster).await?;
                return Err(error);
            }
        },
    }
    loop {
        tokio::select! {
            biased;
            _ = interrupt.recv() => return stop(cluster).await,
            _ = terminate.recv() => return stop(cluster).await,
            ended = cluster.next_end() => match ended {
                Some((name, how)) => {
                    let again = cluster.command_line(&name).unwrap_or_default();
                    println!("{name} ended: {how}; start it again with:\n{again}");
                }
                None => bail!("all members have ended; their logs are in {}", dir.display()),
            },
        }
    }
}

async fn stop(mut cluster: LocalCluster) -> anyhow::Result<()> {
    if let Some(note) = cluster.stop().await {
        println!("{note}");
    }
    Ok(())
}

fn check_port(port: u16) -> anyhow::Result<()> {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(error) => {
            bail!(
                "port {port} cannot be used ({error}): stop what uses it, or choose others with --base-port"
            )
        }
    }
}

fn greeting(places: &[Place], pids: &[(String, u32)], leader: &str) -> String {
    let mut text = String::new();
    for (place, (name, pid)) in places.iter().zip(pids) {
        let note = if name == leader { "  leads" } else { "" };
        text += &format!("{name}  {}  pid {pid}{note}\n", place.url());
    }
    let url = |number: usize| places[number].url();
    text += &format!(
        "\nappend:     curl -s {}/v0/topics/hello -H 'Content-Type: application/json' \
         -d '{{\"records\":[{{\"data\":\"hello\"}}]}}'\n\
         read:       curl -s -X POST {}/v0/topics/hello/diff\n\
         who leads:  curl -s {}/v0/cluster\n\n\
         Ctrl-C stops all three; kill -9 a pid to see the others go on.",
        url(0),
        url(1),
        url(2)
    );
    text
}
