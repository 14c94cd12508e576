//! Members agree: what one acked, all know, and of several that want one thing, one gets it.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::harness::Cluster;

const ROUNDS: usize = 20;

/// C-CLU-01, C-CLU-02, C-CONS-04: small promises share one cluster, as its start takes longer than they do.
#[tokio::test]
async fn members_agree() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    a_strong_read_at_any_member_sees_every_acked_write(&cluster).await;
    an_eventual_read_catches_up(&cluster).await;
    of_concurrent_puts_exactly_one_creates(&cluster).await;
    of_concurrent_conditional_writes_exactly_one_wins(&cluster).await;
    concurrent_writes_with_one_key_append_once(&cluster).await;
}

/// C-CONS-02, C-CLU-01, C-CLU-02.
async fn a_strong_read_at_any_member_sees_every_acked_write(cluster: &Cluster) {
    for round in 0..ROUNDS {
        let (writer, reader) = (round % 3, (round + 1 + round / 3 % 2) % 3);
        let seq = cluster.append(writer, "mine", json!(round)).await.expect("append")["first_seq"].clone();
        let url = cluster.topic_url(reader, "mine");
        let state = cluster.client.get(&url).await.expect("state");
        assert_eq!(state["head_seq"], seq, "the state that m{} tells, round {round}", reader + 1);
        let from_seq = seq.as_u64().expect("a seq") - 1;
        let page = cluster
            .client
            .post(&format!("{url}/diff"), &json!({ "from_seq": from_seq }))
            .await
            .expect("diff");
        assert_eq!(page["records"][0]["data"], json!(round), "what m{} reads", reader + 1);
    }
}

/// C-CONS-04: an eventual read shows a prefix, and in a healthy cluster soon all of it.
async fn an_eventual_read_catches_up(cluster: &Cluster) {
    for number in 0..3 {
        crate::harness::eventually("an eventual read shows all", Duration::from_secs(5), async || {
            let page = cluster.diff(number, "mine", "eventual").await.expect("an eventual diff");
            let records = page["records"].as_array().expect("records");
            for (at, record) in records.iter().enumerate() {
                assert_eq!(record["data"], json!(at), "not a prefix: {page}");
            }
            (records.len() == ROUNDS).then_some(())
        })
        .await;
    }
}

/// C-TOPIC-01, C-TOPIC-02.
async fn of_concurrent_puts_exactly_one_creates(cluster: &Cluster) {
    for round in 0..ROUNDS {
        let topic = format!("put-{round}");
        let puts = (0..6).map(|put| {
            let url = cluster.topic_url(put % 3, &topic);
            async move { cluster.client.put(&url, &json!({ "ttl_ms": 60_000 })).await }
        });
        let mut statuses = Vec::new();
        for reply in join_all(puts).await {
            let status = reply.status();
            assert_eq!(reply.expect("PUT")["created"], json!(status == Some(201)));
            statuses.extend(status);
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 200, 200, 200, 200, 201], "round {round}");
    }
}

/// C-WRITE-13, C-WRITE-14.
async fn of_concurrent_conditional_writes_exactly_one_wins(cluster: &Cluster) {
    for head in 0..ROUNDS as u64 {
        let writes = (0..9).map(|write: usize| {
            let url = cluster.topic_url(write % 3, "conditional");
            let body = json!({ "expect_head_seq": head, "records": [{ "data": write }] });
            async move { cluster.client.post(&url, &body).await }
        });
        let mut winners = Vec::new();
        for (write, reply) in join_all(writes).await.into_iter().enumerate() {
            match reply.status() {
                Some(200 | 201) => winners.push(write),
                Some(409) => assert_eq!(reply.code(), "head_mismatch"),
                _ => panic!("neither won nor lost: {reply:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "winners at head {head}: {winners:?}");
        let page = cluster.diff(head as usize % 3, "conditional", "strong").await.expect("diff");
        assert_eq!(page["head_seq"], json!(head + 1));
        assert_eq!(page["records"][head as usize]["data"], json!(winners[0]), "the winner's record is there");
    }
}

/// C-IDEM-04.
async fn concurrent_writes_with_one_key_append_once(cluster: &Cluster) {
    for round in 0..ROUNDS {
        let writes = (0..6).map(|write| {
            let url = cluster.topic_url(write % 3, "once");
            let body = json!({ "idempotency_key": format!("key-{round}"), "records": [{ "data": write }] });
            async move { cluster.client.post(&url, &body).await.expect("append with a key") }
        });
        let replies = join_all(writes).await;
        let fresh = replies.iter().filter(|reply| reply["deduped"] == json!(false)).count();
        assert_eq!(fresh, 1, "{replies:?}");
        let seq = json!(round + 1);
        assert!(replies.iter().all(|reply| reply["first_seq"] == seq), "not all got seq {seq}: {replies:?}");
    }
}
