//! What the bench asks of the cluster beside the load: topics made, filled, looked at and removed, and who
//! leads.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use futures_util::future::try_join_all;
use serde_json::Value;

use super::answer::{error_code, parse_head_seq};
use super::append::Append;
use super::http::Connection;
use super::load::Operation;
use super::options::{Target, Url};
use super::request::{Topics, request};

/// Connections that fill the topics.
const FILLERS: u64 = 4;
/// Tries of a request that a cluster without a leader refuses, and the pause between them.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// One connection for such requests.
pub struct Control {
    url: Url,
    connection: Connection,
}

impl Control {
    pub async fn connect(url: &Url) -> anyhow::Result<Self> {
        let connection = Connection::open(&url.authority).await;
        let connection = connection.with_context(|| format!("connect to http://{}", url.authority))?;
        Ok(Control { url: url.clone(), connection })
    }

    /// The body of the answer to a request that must succeed. One that a cluster which is looking for its
    /// leader refuses is sent again: all that is asked here may be repeated.
    pub async fn call(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Vec<u8>> {
        let request = request(method, &self.url, path, body);
        let what = || format!("{method} http://{}{path}", self.url.authority);
        for tries in 1.. {
            if self.connection.is_closed() {
                self.connection = Connection::open(&self.url.authority).await.with_context(what)?;
            }
            let response = self.connection.call(&request).await.with_context(what)?;
            if response.is_success() {
                return Ok(response.body.to_vec());
            }
            let code = error_code(response.body).unwrap_or("no code");
            ensure!(response.status == 503 && tries < TRIES, "{}: {} {code}", what(), response.status);
            tokio::time::sleep(PAUSE).await;
        }
        bail!("{}: no answer", what())
    }

    /// Makes the topics.
    pub async fn make(&mut self, topics: &Topics, durability: &str) -> anyhow::Result<()> {
        let config = serde_json::json!({ "durability": durability }).to_string();
        for number in 0..topics.count {
            self.call("PUT", &format!("/v0/topics/{}", topics.name(number)), &config).await?;
        }
        Ok(())
    }

    /// Removes the topics.
    pub async fn remove(&mut self, topics: &Topics) -> anyhow::Result<()> {
        for number in 0..topics.count {
            self.call("DELETE", &format!("/v0/topics/{}", topics.name(number)), "").await?;
        }
        Ok(())
    }

    /// The heads of all topics, in order, by strong reads.
    pub async fn heads(&mut self, topics: &Topics) -> anyhow::Result<Vec<u64>> {
        let mut heads = Vec::new();
        for number in 0..topics.count {
            let path = format!("/v0/topics/{}?touch=false", topics.name(number));
            let body = self.call("GET", &path, "").await?;
            heads.push(parse_head_seq(&body).with_context(|| format!("GET {path}: no head_seq"))?);
        }
        Ok(heads)
    }

    /// The members that get the load, of those at `urls`.
    pub async fn targets(&mut self, urls: &[Url], target: Target) -> anyhow::Result<Vec<Url>> {
        if target == Target::All {
            return Ok(urls.to_vec());
        }
        let body = self.call("GET", "/v0/cluster", "").await?;
        let cluster: Value = serde_json::from_slice(&body).context("read the state of the cluster")?;
        let mut wanted = pick_members(&cluster, target)?;
        wanted.iter_mut().for_each(|url| url.key = self.url.key.clone());
        ensure!(!wanted.is_empty(), "the cluster has no member in that role that is up");
        Ok(wanted)
    }
}

/// The addresses of the members in a role, as `GET /v0/cluster` tells them.
fn pick_members(cluster: &Value, target: Target) -> anyhow::Result<Vec<Url>> {
    let members = cluster["members"].as_array().context("the state of the cluster names no members")?;
    let is_wanted = |member: &&Value| {
        let leads = member["role"] == "leader";
        member["state"] == "up"
            && match target {
                Target::All => true,
                Target::Leader => leads,
                Target::Followers => !leads,
            }
    };
    let address = |member: &Value| {
        let address = member["address"].as_str().unwrap_or_default();
        Url::parse(address).map_err(|wrong| anyhow::anyhow!("a member advertises {address:?}: {wrong}"))
    };
    members.iter().filter(is_wanted).map(address).collect()
}

/// Appends `batches` batches, spread over the topics, as fast as it goes. Any failure is one of the run.
pub async fn fill(
    urls: &[Url],
    batches: u64,
    mut appends: impl FnMut(&Url, usize) -> Append,
) -> anyhow::Result<()> {
    let left = Cell::new(batches);
    let fillers = (0..FILLERS.min(batches)).zip(urls.iter().cycle()).map(|(number, url)| {
        let mut append = appends(url, number as usize);
        let left = &left;
        async move {
            let mut connection = Connection::open(&url.authority).await?;
            while left.get() > 0 {
                left.set(left.get() - 1);
                let response = connection.call(append.request()).await?;
                let code = error_code(response.body).unwrap_or("no code");
                ensure!(response.is_success(), "{} {code}", response.status);
                append.accept(response.body)?;
            }
            anyhow::Ok(())
        }
    });
    try_join_all(fillers).await.context("fill the topics")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_picked_by_role_and_only_if_up() {
        let member = |address: &str, role: &str, state: &str| serde_json::json!({ "address": address, "role": role, "state": state });
        let cluster = serde_json::json!({ "members": [
            member("http://a:1", "voter", "up"),
            member("http://b:1", "leader", "up"),
            member("http://c:1", "learner", "down"),
        ] });
        let picked = |target| -> Vec<String> {
            pick_members(&cluster, target).unwrap().into_iter().map(|url| url.authority).collect()
        };
        assert_eq!(picked(Target::Leader), ["b:1"]);
        assert_eq!(picked(Target::Followers), ["a:1"]);
        assert_eq!(picked(Target::All), ["a:1", "b:1"]);
        assert!(pick_members(&serde_json::json!({}), Target::All).is_err());
    }
}
