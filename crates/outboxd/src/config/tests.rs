//! Rules of the configuration that need no process of their own.

use super::keys::ROUTE_KEYS;
use super::reference::{markdown_routes_table, markdown_table};
use super::*;

fn sources(file: Option<&Path>, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Sources {
    Sources {
        file: file.map(Into::into),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}

fn load(environment: &[(&str, &str)], needs: Needs) -> Result<Config, String> {
    Config::load(&sources(None, environment, &[]), needs).map_err(|problems| problems.to_string())
}

/// The text of a file of the repository.
fn committed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn nothing_set_is_the_engines_default() {
    let config = load(&[], Needs::NOTHING).unwrap();
    assert_eq!(format!("{:?}", config.relay), format!("{:?}", RelayConfig::default()));
    assert_eq!(config.schema.as_str(), "outbox");
}

#[test]
fn every_key_with_a_default_takes_it_from_its_variable_and_refuses_nonsense() {
    for key in KEYS {
        let KeyDefault::Text(text) = key.default else { continue };
        load(&[(&key.variable(), text)], Needs::NOTHING).unwrap();
        let refused = load(&[(&key.variable(), "=//=")], Needs::NOTHING).unwrap_err();
        assert!(refused.contains(key.name) && refused.contains("(environment)"), "{refused}");
        if let Kind::Number(min, max) = key.kind {
            let above = load(&[(&key.variable(), &(max + 1).to_string())], Needs::NOTHING).unwrap_err();
            assert!(above.contains(&format!("from {min} to {max}")), "{above}");
            if let Some(below) = min.checked_sub(1) {
                load(&[(&key.variable(), &below.to_string())], Needs::NOTHING).unwrap_err();
            }
        }
    }
}

#[test]
fn a_setting_of_librdkafka_has_one_name_in_the_file_and_in_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("outboxd.toml");
    std::fs::write(&file, "[kafka.properties]\n\"sasl.username\" = \"file\"\nlinger.ms = 7\n").unwrap();
    let environment = [("OUTBOXD__KAFKA__PROPERTIES__SASL_USERNAME", "environment")];
    let config = Config::load(&sources(Some(&file), &environment, &[]), Needs::NOTHING).unwrap();
    let properties: Vec<_> =
        config.kafka.properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(properties, [("linger.ms", "7"), ("sasl.username", "environment")]);
}

#[test]
fn values_are_taken_as_they_are_written() {
    let config = load(
        &[("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD", "007"), ("OUTBOXD__RELAY__INSTANCE", "1e5")],
        Needs::NOTHING,
    )
    .unwrap();
    assert_eq!(config.kafka.properties["sasl.password"], "007");
    assert_eq!(config.instance, "1e5");
}

#[test]
fn a_later_layer_decides_between_a_secret_and_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("url");
    std::fs::write(&secret, "sqlite:from-file.db\n").unwrap();
    let secret = secret.to_str().unwrap();
    let from_file = load(&[("OUTBOXD__DATABASE__URL_FILE", secret)], Needs::DATABASE).unwrap();
    assert_eq!(from_file.database.unwrap().shown(), "sqlite:from-file.db");
    let both = [("OUTBOXD__DATABASE__URL_FILE", secret), ("OUTBOXD__DATABASE__URL", "sqlite:x.db")];
    assert!(load(&both, Needs::DATABASE).unwrap_err().contains("both set"));
    let flag = sources(None, &both[..1], &[("database.url", "sqlite:flag.db")]);
    assert_eq!(Config::load(&flag, Needs::DATABASE).unwrap().database.unwrap().shown(), "sqlite:flag.db");
}

#[test]
fn the_admin_listener_needs_a_token_where_others_reach_it() {
    let token = "0123456789abcdef0123456789abcdef";
    let database = [
        ("OUTBOXD__DATABASE__URL", "sqlite:shop.db"),
        ("OUTBOXD__KAFKA__BOOTSTRAP_SERVERS", "localhost:9092"),
    ];
    let load = |set: &[(&str, &str)], needs| load(&[&database, set].concat(), needs);
    let admin = load(&[], Needs::ALL).unwrap().admin.unwrap();
    assert!(admin.listen.ip().is_loopback() && !admin.chosen && admin.token.is_none());
    assert!(load(&[("OUTBOXD__ADMIN__LISTEN", "off")], Needs::ALL).unwrap().admin.is_none());
    assert!(load(&[("OUTBOXD__ADMIN__LISTEN", "[::1]:0")], Needs::ALL).unwrap().admin.unwrap().chosen);
    let everywhere = ("OUTBOXD__ADMIN__LISTEN", "0.0.0.0:9465");
    let refused = load(&[everywhere], Needs::ALL).unwrap_err();
    assert!(
        refused.contains("admin.token: is not set") && refused.contains("ADMIN__TOKEN_FILE"),
        "{refused}"
    );
    for needs in [Needs::DATABASE, Needs::BOTH] {
        load(&[everywhere], needs).unwrap();
    }
    let hosts = ("OUTBOXD__ADMIN__HOSTS", "Trace.example, outboxd");
    let admin =
        load(&[everywhere, ("OUTBOXD__ADMIN__TOKEN", token), hosts], Needs::ALL).unwrap().admin.unwrap();
    assert!(admin.token.is_some() && admin.hosts == ["trace.example", "outboxd"]);
    for (short, key) in
        [("c4n4ry", "admin.token: "), ("c4n4ry c4n4ry c4n4ry c4n4ry c4n4ry c4n4ry", "admin.token: ")]
    {
        let refused = load(&[everywhere, ("OUTBOXD__ADMIN__TOKEN", short)], Needs::ALL).unwrap_err();
        assert!(
            refused.contains(key) && refused.contains("32 to 1024") && !refused.contains("c4n4ry"),
            "{refused}"
        );
    }
    assert!(load(&[("OUTBOXD__ADMIN__HOSTS", "a:1")], Needs::ALL).unwrap_err().contains("admin.hosts: "));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let file = ("OUTBOXD__ADMIN__TOKEN_FILE", file.to_str().unwrap());
    let admin = load(&[everywhere, file], Needs::ALL).unwrap().admin.unwrap();
    assert_eq!(admin.token.unwrap().expose_secret(), token);
    let both = load(&[file, ("OUTBOXD__ADMIN__TOKEN", token)], Needs::ALL).unwrap_err();
    assert!(both.contains("admin.token and admin.token_file are both set"), "{both}");
}

#[test]
fn debug_output_of_a_configuration_holds_no_secret() {
    let environment = [
        ("OUTBOXD__ADMIN__TOKEN", "hunter2-hunter2-hunter2-hunter2-hunter2"),
        ("OUTBOXD__DATABASE__URL", "postgres://app:hunter2@db/shop"),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2"),
        ("OUTBOXD__KAFKA__PROPERTIES__SSL_KEY_PEM", "hunter2"),
    ];
    let sources = sources(None, &environment, &[]);
    let config = Config::load(&sources, Needs::DATABASE).unwrap();
    let said = format!("{config:?} {:?} {sources:?} {:?}", config.shown, RawConfig::read(&sources));
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_section_given_a_value_is_refused() {
    let refused = load(&[("OUTBOXD__RELAY", "x")], Needs::NOTHING).unwrap_err();
    assert!(refused.contains("relay: unknown key"), "{refused}");
}

fn with_file(text: &str) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("outboxd.toml");
    std::fs::write(&file, text).unwrap();
    let loaded = Config::load(&sources(Some(&file), &[], &[]), Needs::NOTHING);
    loaded.map_err(|problems| problems.to_string().replace(file.to_str().unwrap(), "outboxd.toml"))
}

#[test]
fn routes_are_read_from_the_file() {
    let config = with_file(
        "[relay]\ntopics_allowed = [\"orders.*\", \"billing\"]\n
         [[route]]\ntopics = [\"orders.*\"]\non_refused = \"skip\"\ndead_letter = \"dead\"\nattempts_max = 3\n
         topic_prefix = \"staging.\"\nheader_aliases = { \"correlation-id\" = \"X-Request-Id\" }\n
         [[route]]\ntopics = \"billing, audit\"\n",
    )
    .unwrap();
    let routes: Vec<&outboxd_core::Route> = config.relay.routes.iter().collect();
    assert_eq!(routes.len(), 2);
    let orders = config.relay.routes.destination("orders.eu");
    assert_eq!((&*orders.topic, &*orders.route), ("staging.orders.eu", routes[0]));
    assert_eq!(routes[0].on_refused, outboxd_core::OnRefused::Skip);
    assert_eq!((routes[0].dead_letter.as_deref(), routes[0].attempts_max), (Some("dead"), Some(3)));
    assert_eq!(routes[0].header_aliases, [("correlation-id", "X-Request-Id".to_owned())]);
    assert_eq!(*config.relay.routes.destination("billing").route, *routes[1]);
    assert!(config.relay.routes.destination("audit").refusal.is_some(), "not among those that are allowed");
    let shown: Vec<_> = config.shown.iter().filter(|shown| shown.key.starts_with("route.1.")).collect();
    assert_eq!(shown.len(), 6, "{shown:?}");
}

#[test]
fn every_example_is_a_valid_configuration() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/examples");
    let examples: Vec<_> = std::fs::read_dir(examples).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!examples.is_empty());
    for example in examples {
        if let Err(problems) = Config::load(&sources(Some(&example), &[], &[]), Needs::NOTHING) {
            panic!("{problems}");
        }
    }
}

#[test]
fn everything_that_is_wrong_with_routes_is_said_at_once_with_the_route_that_it_is_about() {
    let refused = with_file(
        "[[route]]\ntopics = [\"orders.*\"]\ndead_leter = \"x\"\non_refused = \"drop\"\nattempts_max = 0\n
         [[route]]\ntopics = [\"*.eu\", \"a/b\"]\ntopic_prefix = \"__\"\n
         [[route]]\nheader_aliases = { \"correlation\" = \"x\", \"id\" = \"outbox-id\" }\n
         [[route]]\ntopics = [\"orders.eu\"]\ndead_letter = \"orders.eu\"\n",
    )
    .unwrap_err();
    for said in [
        "route.1.dead_leter: unknown key; did you mean route.dead_letter? (outboxd.toml)",
        "route.1.on_refused: \"drop\" must be one of block_key, skip (outboxd.toml)",
        "route.1.attempts_max: 0 must be",
        "route.1.topics: \"orders.*\" of route 1 and \"orders.eu\" of route 4 match the same topics",
        "route.2.topics: \"a/b\" is no topic pattern",
        "route.2.topic_prefix: \"__\" must be",
        "route.3.topics: is empty",
        "route.3.header_aliases: \"correlation\" is no header of the relay: one of id, correlation-id",
        "route.4.dead_letter: \"orders.eu\" is a topic of the same route",
    ] {
        assert!(refused.contains(said), "{said}\nis not among\n{refused}");
    }
}

#[test]
fn routes_are_a_list_of_tables_and_nothing_else_can_say_them() {
    for (file, key) in [("route = 3\n", "route: "), ("[route]\ntopics = \"x\"\n", "route.topics: ")] {
        let refused = with_file(file).unwrap_err();
        assert!(refused.contains(key) && refused.contains("[[route]]"), "{refused}");
    }
    let refused = load(&[("OUTBOXD__ROUTE__TOPICS", "x")], Needs::NOTHING).unwrap_err();
    assert!(refused.contains("route.topics: ") && refused.contains("[[route]]"), "{refused}");
}

#[test]
fn the_example_file_and_the_documentation_say_what_the_code_says() {
    assert_eq!(
        committed("config/outboxd.toml"),
        toml_file(),
        "config/outboxd.toml is to be:\n{}",
        toml_file()
    );
    let document = committed("docs/configuration.md");
    for table in [markdown_table(), markdown_routes_table()] {
        assert!(document.contains(&table), "docs/configuration.md is to hold:\n{table}");
    }
}

#[test]
fn the_example_file_sets_nothing_and_is_valid_with_every_line_uncommented() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("outboxd.toml");
    std::fs::write(&file, toml_file()).unwrap();
    let config = Config::load(&sources(Some(&file), &[], &[]), Needs::NOTHING).unwrap();
    assert!(config.shown.iter().all(|shown| shown.from == "default"), "{:?}", config.shown);

    let uncommented: String = toml_file()
        .lines()
        .filter(|line| !line.contains("_file") && !line.contains(".file") && !line.starts_with("#token ="))
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && (rest.contains(" = ") || rest.starts_with("[[")) => {
                format!("{rest}\n")
            }
            _other => format!("{line}\n"),
        })
        .collect();
    std::fs::write(&file, uncommented).unwrap();
    let password = [("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD", "x")];
    let config = Config::load(&sources(Some(&file), &password, &[]), Needs::BOTH).unwrap();
    let set = config.shown.iter().filter(|shown| shown.from != "default").count();
    assert_eq!(
        set,
        KEYS.len() - 4 + 5 + ROUTE_KEYS.len(),
        "every key but two files, the token and the table, five properties and a route: {:?}",
        config.shown
    );
}
