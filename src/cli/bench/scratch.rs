//! A cluster for one run: three members on free ports, in a directory that goes with it.

use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::Context;

use super::options::Url;
use crate::cli::local_cluster::{LocalCluster, Place};

const MEMBERS: usize = 3;
/// Below the ports that outgoing connections are given, which could be taken between being found free
/// and being used.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// A running cluster. Dropping it kills the members and leaves the directory.
pub struct ScratchCluster {
    dir: PathBuf,
    cluster: LocalCluster,
    /// Not so while starting: then the logs say why that failed.
    is_ready: bool,
}

impl ScratchCluster {
    /// Starts the members and does not wait for them.
    pub fn start() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("antiphon-bench-{:016x}", rand::random::<u64>()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&dir);
        made.with_context(|| format!("create {}", dir.display()))?;
        let cluster = LocalCluster::start(&dir, "bench", free_places()?)?;
        Ok(ScratchCluster { dir, cluster, is_ready: false })
    }

    pub async fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.cluster.wait_ready().await?;
        self.is_ready = true;
        Ok(())
    }

    pub fn urls(&self) -> anyhow::Result<Vec<Url>> {
        let urls = self.cluster.places().iter().map(|place| Url::parse(&place.url()));
        urls.map(|url| url.map_err(anyhow::Error::msg)).collect()
    }

    pub fn pids(&self) -> Vec<(String, u32)> {
        self.cluster.pids()
    }

    /// Stops the members, and removes the directory unless it is to be kept.
    pub async fn stop(mut self, keep: bool) {
        if let Some(note) = self.cluster.stop().await {
            eprintln!("{note}");
        }
        if keep || !self.is_ready {
            eprintln!("data and logs are kept in {}", self.dir.display());
        } else if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{} could not be removed: {error}", self.dir.display());
        }
    }
}

/// Places with ports that are free now.
fn free_places() -> anyhow::Result<Vec<Place>> {
    let mut held = Vec::new();
    for _ in 0..1000 {
        let port = rand::random_range(PORTS);
        // Held until all are found, so that none is found twice.
        held.extend(TcpListener::bind(("127.0.0.1", port)).ok().map(|listener| (port, listener)));
        if held.len() == 2 * MEMBERS {
            break;
        }
    }
    let places = held.chunks_exact(2).zip(1..).map(|(ports, number)| Place {
        name: format!("m{number}"),
        client_port: ports[0].0,
        peer_port: ports[1].0,
    });
    let places: Vec<Place> = places.collect();
    anyhow::ensure!(places.len() == MEMBERS, "no free ports on 127.0.0.1");
    Ok(places)
}
