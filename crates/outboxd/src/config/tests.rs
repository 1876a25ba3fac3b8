//! Rules of the configuration that need no process of their own.

use super::reference::markdown_table;
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
fn debug_output_of_a_configuration_holds_no_secret() {
    let environment = [
        ("OUTBOXD__DATABASE__URL", "postgres://app:canary@db/shop"),
        ("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD", "canary"),
        ("OUTBOXD__KAFKA__PROPERTIES__SSL_KEY_PEM", "canary"),
    ];
    let sources = sources(None, &environment, &[]);
    let config = Config::load(&sources, Needs::DATABASE).unwrap();
    let said = format!("{config:?} {sources:?} {:?}", RawConfig::read(&sources));
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn a_section_given_a_value_is_refused() {
    let refused = load(&[("OUTBOXD__RELAY", "x")], Needs::NOTHING).unwrap_err();
    assert!(refused.contains("relay: unknown key"), "{refused}");
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
    assert!(document.contains(&markdown_table()), "docs/configuration.md is to hold:\n{}", markdown_table());
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
        .filter(|line| !line.contains("_file") && !line.contains(".file"))
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && rest.contains(" = ") => format!("{rest}\n"),
            _other => format!("{line}\n"),
        })
        .collect();
    std::fs::write(&file, uncommented).unwrap();
    let password = [("OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD", "x")];
    let config = Config::load(&sources(Some(&file), &password, &[]), Needs::BOTH).unwrap();
    let set = config.shown.iter().filter(|shown| shown.from != "default").count();
    assert_eq!(
        set,
        KEYS.len() - 2 + 5,
        "every key but the file and the table, and five properties: {:?}",
        config.shown
    );
}
