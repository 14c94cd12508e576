//! Outcomes come back as they were written.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![0u8..20, any::<u8>()], 0..60)) {
        let _ = Outcome::decode(&mut Reader::new(&bytes, "outcome"));
    }
}

#[test]
fn every_outcome_comes_back() {
    let appended = Appended { first_seq: 9, count: 3, head_seq: 11, created: true, deduped: false };
    let differs = Refusal::TypeDiffers { existing: TopicType::Log, requested: TopicType::Queue };
    for outcome in [
        Outcome::Nothing,
        Outcome::Appended(appended),
        Outcome::TopicPut { created: true, config: TopicConfig::default() },
        Outcome::TopicDeleted { deleted: false, routers_removed: Vec::new() },
        Outcome::TopicDeleted { deleted: true, routers_removed: vec!["a->b".into(), "c".into()] },
        Outcome::RouterPut { created: true, start: Start::Seq(1 << 40), has_token: true, is_changed: true },
        Outcome::RouterPut { created: false, start: Start::Latest, has_token: false, is_changed: false },
        Outcome::RouterDeleted { deleted: true },
        Outcome::RouterPaused { is_paused: true },
        Outcome::RouterCycle { cycle: vec!["a".into(), "b".into(), "a".into()] },
        Outcome::ClusterSet,
        Outcome::Refused(Refusal::RouterNotFound),
        Outcome::Refused(Refusal::RepointForbidden),
        Outcome::Refused(Refusal::NoStoredToken),
        Outcome::Refused(Refusal::NoCluster),
        Outcome::Refused(Refusal::BadRecord),
        Outcome::Refused(Refusal::TokenOfOtherUrls),
        Outcome::Refused(Refusal::NotMirrored),
        Outcome::Refused(Refusal::TooManySkips),
        Outcome::RecordSkipped { skipped: true },
        Outcome::TokenSealed,
        Outcome::Refused(Refusal::OverLimit { limit: Limit::MaxRouters, max: 7 }),
        Outcome::SessionOpened,
        Outcome::Expired { topic_count: 300 },
        Outcome::Refused(Refusal::TopicFull { cap_records: 1, cap_bytes: 200, head_seq: 9, earliest_seq: 9 }),
        Outcome::Refused(Refusal::AboveCaps { cap_records: 1, cap_bytes: 1 << 40 }),
        Outcome::Refused(Refusal::TopicNotFound),
        Outcome::Refused(differs),
        Outcome::Refused(Refusal::NotEmpty { count: 5 }),
        Outcome::Refused(Refusal::HeadMismatch { head_seq: 7 }),
        Outcome::Refused(Refusal::SessionUnknown),
        Outcome::Refused(Refusal::OverLimit { limit: Limit::MaxTotalBytes, max: 7 }),
        Outcome::AppendedMany(vec![appended; 64]),
        Outcome::PartRefused { part: 3, refusal: Refusal::HeadMismatch { head_seq: 1 } },
        Outcome::KeysConflict { parts: vec![0, 63] },
        Outcome::LimitsSet,
        Outcome::Refused(Refusal::LookAgain),
        Outcome::Forwarded(vec![
            Forwarded { taken: 7, seq: 1 << 40, stopped: None },
            Forwarded::stopped(Refusal::RouterMoved),
        ]),
        Outcome::RecordsDeleted(RecordsDeleted {
            deleted: 17,
            earliest_seq: 8872,
            head_seq: 9122,
            count: 233,
            bytes: 37111,
        }),
    ] {
        let mut bytes = BytesMut::new();
        outcome.encode(&mut bytes);
        let mut reader = Reader::new(&bytes, "outcome");
        assert_eq!(Outcome::decode(&mut reader), Ok(outcome));
        assert!(reader.finish().is_ok());
    }
}
