use super::*;

fn given(pairs: &[(&'static str, &str)]) -> Given {
    let mut given = Given::default();
    pairs.iter().for_each(|(name, text)| given.set(name, (*text).to_owned(), Source::Flag));
    given
}

fn resolve(pairs: &[(&'static str, &str)]) -> Result<Settings, String> {
    Settings::resolve(&given(pairs)).map_err(|bad| bad.to_string())
}

/// The one line of the refusal, which must name every one of `parts`.
fn refused(pairs: &[(&'static str, &str)], parts: &[&str]) {
    let line = resolve(pairs).expect_err(&format!("{pairs:?} was taken"));
    assert!(!line.contains('\n'), "more than one line: {line}");
    parts.iter().for_each(|part| assert!(line.contains(part), "{part:?} is not in: {line}"));
}

const SECRET: &str = "0123456789abcdef";

#[test]
fn nothing_given_is_a_cluster_of_one_on_loopback() {
    let settings = resolve(&[]).unwrap();
    assert_eq!((settings.cluster.as_str(), settings.member.as_str()), ("default", "m1"));
    assert_eq!(settings.listen(), "127.0.0.1:4000");
    assert_eq!(settings.advertise_url, "http://127.0.0.1:4000");
    assert_eq!(
        (settings.peer_listen.as_str(), settings.peer_advertise.as_str()),
        ("127.0.0.1:4100", "127.0.0.1:4100")
    );
    assert_eq!(settings.data_dir, PathBuf::from("./antiphon-data"));
    assert!(settings.members.is_empty() && settings.join.is_empty());
    assert_eq!((settings.request_timeout_ms, settings.max_body_bytes), (10_000, 64 << 20));
    assert_eq!(
        (settings.heartbeat_ms, settings.election_timeout_min_ms, settings.election_timeout_max_ms),
        (200, 500, 800)
    );
    assert_eq!(
        (settings.segment_bytes, settings.cache_bytes, settings.runtime_threads),
        (64 << 20, 64 << 20, 0)
    );
    let kept = (settings.kept_log_entries, settings.kept_log_bytes, settings.lag_patience_ms);
    assert_eq!(kept, (200_000, 1 << 30, 600_000));
    assert_eq!((settings.log.as_str(), settings.log_format), ("info,openraft=error", LogFormat::Text));
    assert_eq!(settings.warnings().len(), 1, "no keys is said, and nothing else");
}

#[test]
fn what_was_given_is_one_line_and_secrets_are_not_in_it() {
    assert_eq!(given(&[]).describe(), "none given");
    let mut given =
        given(&[("members", "m1=a:1,m2=b:2"), ("cluster_secret", SECRET), ("data_dir", "/a \n b")]);
    given.set("port", "1".to_owned(), Source::Variable);
    let line = given.describe();
    assert_eq!(line, r#"data_dir="/a \n b" port=1 members=m1=a:1,m2=b:2 cluster_secret=(hidden)"#);
    let secrets = SETTINGS.iter().filter(|setting| setting.kind == Kind::Secret);
    for setting in secrets {
        let mut given = Given::default();
        given.set(setting.name, "hunter2".to_owned(), Source::Flag);
        assert_eq!(given.describe(), format!("{}=(hidden)", setting.name));
    }
}

#[test]
fn host_may_hold_the_port_and_then_port_is_ignored() {
    // C-CONV-01
    let settings = resolve(&[("host", "127.0.0.2:4567"), ("port", "not looked at")]).unwrap();
    assert_eq!(settings.listen(), "127.0.0.2:4567");
    assert_eq!(resolve(&[("host", "[::1]:4567")]).unwrap().listen(), "[::1]:4567");
    assert_eq!(resolve(&[("host", "::1")]).unwrap().listen(), "[::1]:4000");
    assert_eq!(resolve(&[("host", "localhost")]).unwrap().advertise_url, "http://localhost:4000");
    refused(&[("host", "http://127.0.0.1")], &["--host", "http://127.0.0.1", "allowed"]);
    refused(&[("port", "0")], &["--port", "\"0\"", "1 to 65535"]);
    refused(&[("port", "70000")], &["--port", "70000"]);
}

#[test]
fn a_service_link_in_the_port_is_explained() {
    let mut link = Given::default();
    link.set("port", "tcp://10.0.0.1:4000".to_owned(), Source::Variable);
    let line = Settings::resolve(&link).unwrap_err().to_string();
    for part in ["ANTIPHON_PORT", "tcp://10.0.0.1:4000", "service", "enableServiceLinks", "--port"] {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}

#[test]
fn without_keys_only_loopback_is_served() {
    // C-AUTH-08
    refused(&[("host", "0.0.0.0")], &["--host", "0.0.0.0", "api_keys", "allow_insecure_no_auth"]);
    refused(&[("host", "0.0.0.0"), ("api_keys", " , ")], &["--host"]);
    refused(&[("host", "example.org:80")], &["--host", "example.org"]);
    assert!(resolve(&[("host", "0.0.0.0"), ("allow_insecure_no_auth", "1")]).is_ok());
    let settings = resolve(&[("host", "0.0.0.0"), ("api_keys", "k1:r")]).unwrap();
    assert_eq!(settings.warnings(), Vec::<String>::new());
}

#[test]
fn names_follow_the_contract() {
    for name in ["a", "9", "A.b_c-d", &"x".repeat(64)] {
        assert_eq!(resolve(&[("cluster", name)]).unwrap().cluster, name);
    }
    for name in ["", "-a", ".a", "_a", "a b", "a/b", "a:b", "ä", "aä", &"x".repeat(65)] {
        refused(&[("member", name)], &["--member", "allowed"]);
    }
}

#[test]
fn the_static_list_holds_this_member_once() {
    let list = "m1=10.0.0.1:4100, m2=10.0.0.2:4100,m3=host-3:4100";
    let settings = resolve(&[("members", list), ("cluster_secret", SECRET), ("member", "m2")]).unwrap();
    assert_eq!(settings.members.len(), 3);
    assert_eq!(settings.members[2], Peer { name: "m3".into(), address: "host-3:4100".into() });
    assert_eq!(settings.peer_advertise, "10.0.0.2:4100", "the list says how the others know it");
    assert!(settings.warnings().iter().any(|line| line.contains("peer_listen")), "{:?}", settings.warnings());

    let refused = |list: &str, part: &str| {
        refused(&[("members", list), ("cluster_secret", SECRET)], &["--members", part])
    };
    refused("m2=h:1,m3=h:2", "does not hold this member");
    refused("m1=h:1,m1=h:2", "repeats");
    refused("m1=h:1,m2=h:1", "repeats");
    refused("m1=h", "host:port");
    refused("h:1", "name=");
    refused("-=h:1", "not a name");
    refused("m1=h:1,m2=h:2,m3=h:3,m4=h:4,m5=h:5,m6=h:6,m7=h:7,m8=h:8", "more than 7");
    super::tests::refused(
        &[("members", "m1=h:1"), ("join", "h:2"), ("cluster_secret", SECRET)],
        &["exclude"],
    );
}

#[test]
fn a_cluster_needs_a_secret_of_sixteen_characters_that_is_never_shown() {
    refused(&[("members", "m1=h:1")], &["--cluster-secret", "needed"]);
    refused(&[("join", "h:1")], &["--cluster-secret", "needed"]);
    let line = resolve(&[("cluster_secret", "short-and-sweet")]).unwrap_err();
    assert!(line.contains("at least 16") && !line.contains("short-and-sweet"), "{line}");
    let settings = resolve(&[("cluster_secret", SECRET), ("api_keys", "topsecret")]).unwrap();
    let shown = format!("{settings:?}");
    assert!(!shown.contains(SECRET) && !shown.contains("topsecret"), "{shown}");
}

#[test]
fn a_secret_may_come_from_a_file_and_then_only_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret");
    let path = path.to_str().unwrap();
    for (content, expected) in
        [(format!("{SECRET}\n"), SECRET), (format!("{SECRET}\r\n"), SECRET), (SECRET.into(), SECRET)]
    {
        std::fs::write(path, content).unwrap();
        let settings = resolve(&[("cluster_secret_file", path)]).unwrap();
        assert_eq!(settings.cluster_secret.unwrap().expose(), expected);
    }
    refused(
        &[("cluster_secret_file", path), ("cluster_secret", SECRET)],
        &["--cluster-secret:", "--cluster-secret-file", "keep one"],
    );
    refused(
        &[("api_keys_file", "/nonexistent/file")],
        &["--api-keys-file", "/nonexistent/file", "cannot be read"],
    );
    std::fs::write(path, "short\n").unwrap();
    refused(&[("cluster_secret_file", path)], &["--cluster-secret-file", "at least 16"]);
}

#[test]
fn keys_in_a_file_have_a_line_each_and_comments() {
    // C-AUTH-02
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let path = path.to_str().unwrap();
    let keys = |content: &str| {
        std::fs::write(path, content).unwrap();
        resolve(&[("api_keys_file", path)])
            .map(|settings| settings.api_keys.map(|keys| keys.expose().to_owned()))
    };
    assert_eq!(keys("alpha"), Ok(Some("alpha".into())));
    let several = "# of the gateway\nalpha:r:a  # reads, no more\r\n\n  # and others\n  beta:w , gamma#1\n";
    let joined = keys(several).unwrap().unwrap();
    let entries: Vec<&str> = joined.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    assert_eq!(entries, ["alpha:r:a", "beta:w", "gamma#1"]);
    // Who names a file does not mean that everybody may do everything.
    for empty in ["", "\n", "# alpha\n", " , \n"] {
        let line = keys(empty).unwrap_err();
        assert!(line.contains("--api-keys-file") && line.contains("holds no key"), "{line}");
    }
    // What a check of the member itself presents.
    std::fs::write(path, several).unwrap();
    let first = |pairs: &[_]| client_key(&given(pairs)).map(|key| key.expose().to_owned());
    assert_eq!(first(&[("api_keys_file", path)]), Some("alpha".into()));
    assert_eq!(first(&[("api_keys", " , one : r , two")]), Some("one".into()));
    assert_eq!(first(&[]), None);
    assert_eq!(first(&[("api_keys_file", "/nonexistent/file")]), None);
}

#[test]
fn election_timeouts_leave_room_for_a_late_heartbeat() {
    refused(&[("heartbeat_ms", "300")], &["--election-timeout-min-ms", "500", "twice heartbeat_ms"]);
    refused(&[("election_timeout_max_ms", "500")], &["--election-timeout-max-ms", "above"]);
    refused(&[("heartbeat_ms", "0")], &["--heartbeat-ms", "from 10"]);
    assert!(resolve(&[("heartbeat_ms", "250")]).is_ok());
}

#[test]
fn sizes_and_switches_and_filters_are_checked() {
    assert_eq!(resolve(&[("segment_bytes", "1 MiB")]).unwrap().segment_bytes, 1 << 20);
    assert_eq!(resolve(&[("max_body_bytes", "0")]).unwrap().max_body_bytes, MAX_BODY_BYTES);
    refused(&[("segment_bytes", "1")], &["--segment-bytes", "65536"]);
    refused(&[("max_body_bytes", "99999999999999GiB")], &["--max-body-bytes"]);
    refused(&[("probe_auth", "yes")], &["--probe-auth", "yes", "allowed"]);
    refused(&[("log", "in fo=,=")], &["--log"]);
    refused(&[("log_format", "xml")], &["--log-format", "xml", "text or json"]);
    refused(&[("request_timeout_ms", "-1")], &["--request-timeout-ms", "-1"]);
    refused(&[("cluster", "two\nlines")], &["--cluster"]);
}

#[test]
fn caps_and_origins_are_what_was_given() {
    // C-CONV-18, C-LIMIT-01, C-LIMIT-04, C-LIMIT-09
    let settings = resolve(&[]).unwrap();
    assert_eq!(settings.cors_allow_origins, Vec::<String>::new());
    assert_eq!((settings.max_topics, settings.max_total_bytes), (100_000, 0));
    assert_eq!(settings.max_inflight_per_key, 1000);
    assert_eq!(settings.max_connections, 0);
    assert!((128 << 20..=1 << 30).contains(&settings.max_inflight_bytes), "{}", settings.max_inflight_bytes);
    let large = [("max_body_bytes", "200MiB"), ("max_inflight_bytes", "200MiB")];
    assert_eq!(resolve(&large).unwrap().max_inflight_bytes, 200 << 20);
    assert!(resolve(&large[..1]).unwrap().max_inflight_bytes >= 200 << 20);
    assert_eq!(resolve(&[("max_inflight_bytes", "0")]).unwrap().max_inflight_bytes, 0);
    refused(&[("max_inflight_bytes", "1MiB")], &["--max-inflight-bytes", "1048576", "max_body_bytes"]);
    let origins = |text| resolve(&[("cors_allow_origins", text)]).map(|it| it.cors_allow_origins);
    assert_eq!(origins("*").unwrap(), ["*"]);
    assert_eq!(
        origins(" https://a.b , http://localhost:3000,").unwrap(),
        ["https://a.b", "http://localhost:3000"]
    );
    for bad in ["a.b", "https://", "https://a.b/", "https://a.b/c", "://a", "*,https://a.b", "https://*.a.b"]
    {
        refused(
            &[("cors_allow_origins", bad)],
            &["--cors-allow-origins", "allowed is *"].map(|part| {
                if bad.starts_with("*,") && part.starts_with("allowed") { "alone" } else { part }
            }),
        );
    }
    assert_eq!(
        resolve(&[("max_total_bytes", "2GiB"), ("max_topics", "0")]).unwrap().max_total_bytes,
        2 << 30
    );
    refused(&[("max_topics", "-1")], &["--max-topics", "-1"]);
}

#[test]
fn addresses_that_others_get_are_ones_they_can_use() {
    let wild = [("peer_listen", "0.0.0.0:4100"), ("cluster_secret", SECRET)];
    refused(&[&wild[..], &[("join", "h:1")]].concat(), &["--peer-advertise", "0.0.0.0:4100"]);
    let settings =
        resolve(&[&wild[..], &[("members", "m1=h1:4100"), ("host", "::"), ("api_keys", "k")]].concat())
            .unwrap();
    assert_eq!(settings.advertise_url, "http://h1:4000", "the wildcard is not given away");
    assert_eq!(resolve(&[("advertise_url", "https://a.b/")]).unwrap().advertise_url, "https://a.b");
    refused(&[("advertise_url", "a.b:80")], &["--advertise-url", "http://host:port"]);
    refused(&[("advertise_url", "http://a.b/path")], &["--advertise-url"]);
}

#[test]
fn empty_variables_count_as_absent_and_unknown_ones_are_found() {
    let mut empty = Given::default();
    empty.set("members", String::new(), Source::Variable);
    assert!(Settings::resolve(&empty).unwrap().members.is_empty());
    let names = ["ANTIPHON_PROT", "ANTIPHON_PORT", "ANTIPHON_API_KEYS_FILE", "ANTIPHON_PORT_FILE", "HOME"];
    let unknown = unknown_variables(names.iter().map(|name| (*name).to_owned()));
    assert_eq!(unknown, ["ANTIPHON_PORT_FILE", "ANTIPHON_PROT"]);
}

#[test]
fn a_machine_reaches_its_own_member_by_loopback_where_the_address_is_a_wildcard() {
    let url = |pairs: &[(&'static str, &str)]| {
        let mut given = Given::default();
        pairs.iter().for_each(|(name, text)| given.set(name, (*text).to_owned(), Source::Variable));
        client_url(&given).map_err(|bad| bad.to_string())
    };
    assert_eq!(url(&[]).unwrap(), "http://127.0.0.1:4000");
    assert_eq!(url(&[("host", ""), ("port", "")]).unwrap(), "http://127.0.0.1:4000");
    assert_eq!(url(&[("host", "0.0.0.0"), ("port", "5")]).unwrap(), "http://127.0.0.1:5");
    assert_eq!(url(&[("host", "0.0.0.0:7"), ("port", "5")]).unwrap(), "http://127.0.0.1:7");
    assert_eq!(url(&[("host", "::")]).unwrap(), "http://[::1]:4000");
    assert_eq!(url(&[("host", "10.1.2.3")]).unwrap(), "http://10.1.2.3:4000");
    assert!(url(&[("port", "x")]).unwrap_err().contains("ANTIPHON_PORT"));
}

#[test]
fn a_member_without_keys_is_known_by_these_names() {
    // C-CONV-19
    let hosts = |pairs: &[(&'static str, &str)]| resolve(pairs).map(|settings| settings.allowed_hosts);
    assert_eq!(hosts(&[]).unwrap(), ["127.0.0.1", "localhost"]);
    assert_eq!(hosts(&[("allowed_hosts", "*")]).unwrap(), ["*"]);
    assert_eq!(hosts(&[("allow_insecure_no_auth", "1")]).unwrap(), ["*"]);
    assert_eq!(
        hosts(&[("allow_insecure_no_auth", "1"), ("allowed_hosts", "A.b")]).unwrap(),
        ["127.0.0.1", "a.b", "localhost"]
    );
    let given = [
        ("allowed_hosts", "one.example, Two"),
        ("advertise_url", "http://Own.example:80"),
        ("members", "m1=[::1]:4100,m2=host-2:4100"),
        ("cluster_secret", SECRET),
    ];
    let names = ["::1", "host-2", "localhost", "one.example", "own.example", "two"];
    assert_eq!(hosts(&given).unwrap(), names);
    for bad in ["a.b:80", "*,a.b", "http://a.b", "*.a.b"] {
        refused(&[("allowed_hosts", bad)], &["--allowed-hosts"]);
    }
}

#[test]
fn every_section_of_help_begins_with_a_setting_that_there_is() {
    let mut sections: Vec<&str> = settings_in_sections().map(|(_, section)| section).collect();
    assert!(sections.iter().all(|section| !section.is_empty()));
    sections.dedup();
    assert_eq!(sections.len(), 8, "{sections:?}");
}
