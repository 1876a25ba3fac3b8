//! The reference, written from [`KEYS`]: `config/outboxd.toml`, which `config reference` prints, and the table of
//! `docs/configuration.md`.

use super::keys::{Default, KEYS, Key, Kind, ROUTE_KEYS};

const TOML_HEAD: &str = "\
# Every key of outboxd, with its default and its bounds. Lines that begin with # set nothing.
#
# defaults < this file, or the one that --config names < environment < flags
#
# A key's environment variable is OUTBOXD__SECTION__KEY: OUTBOXD__RELAY__POLL_MAX_MS. `outboxd config show` prints what
# holds and where it came from, `outboxd config check` everything that is wrong with it.
";

const PROPERTIES_TOML: &str = "\
#
# Secrets may also be read from a file: \"sasl.password.file\". In the environment, dots are underscores:
# OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD, OUTBOXD__KAFKA__PROPERTIES__SASL_PASSWORD_FILE.
# Settings that would void a promise (acks, enable.idempotence, message.timeout.ms, ...) or run code are refused by name.
[kafka.properties]
#\"security.protocol\" = \"SASL_SSL\"
#\"sasl.mechanism\" = \"SCRAM-SHA-512\"
#\"sasl.username\" = \"outboxd\"
#\"sasl.password.file\" = \"/run/secrets/kafka-password\"
#\"linger.ms\" = 5
";

const ROUTES_TOML: &str = "
# Policies per topic: any number of routes, each beginning with the line [[route]]. Topics without a route get the defaults. No
# environment variable and no flag can say a route.
#[[route]]
";

/// The whole of `config/outboxd.toml`.
pub(crate) fn toml_file() -> String {
    let mut text = TOML_HEAD.to_owned();
    let mut section = "";
    // TOML wants a table's own keys before its sub-tables; the one sub-table is the last key of its section.
    for key in KEYS {
        let (its_section, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if its_section != section {
            section = its_section;
            text.push_str(&format!("\n[{section}]\n"));
        } else {
            text.push('\n');
        }
        if matches!(key.kind, Kind::Properties) {
            text.push_str(&format!("# {}\n", key.doc));
            text.push_str(PROPERTIES_TOML);
        } else {
            described(&mut text, key, name);
        }
    }
    text.push_str(ROUTES_TOML);
    for key in ROUTE_KEYS {
        text.push('\n');
        described(&mut text, key, key.name.trim_start_matches("route."));
    }
    text
}

fn described(text: &mut String, key: &Key, name: &str) {
    text.push_str(&format!("# {}\n", key.doc));
    text.push_str(&format!("# Takes {}.{}\n", key.bounds(), computed(key)));
    text.push_str(&format!("#{name} = {}\n", example(key)));
}

/// The table of routes in `docs/configuration.md`.
#[cfg(test)]
pub(crate) fn markdown_routes_table() -> String {
    let mut text = "| Key | Default | Takes | What it does |\n| --- | --- | --- | --- |\n".to_owned();
    for key in ROUTE_KEYS {
        text.push_str(&format!(
            "| `{}` | {} | {} | {} |\n",
            key.name,
            default_of(key),
            key.bounds(),
            key.doc
        ));
    }
    text
}

#[cfg(test)]
fn default_of(key: &Key) -> String {
    match key.default {
        Default::Text(text) => format!("`{text}`"),
        Default::Unset => "not set".to_owned(),
        Default::Computed(words) => words.to_owned(),
    }
}

/// The table in `docs/configuration.md`.
#[cfg(test)]
pub(crate) fn markdown_table() -> String {
    let mut text = "| Key | Default | Takes | What it does |\n| --- | --- | --- | --- |\n".to_owned();
    for key in KEYS {
        let default = default_of(key);
        text.push_str(&format!(
            "| `{}`<br>`{}` | {default} | {} | {} |\n",
            key.name,
            key.variable(),
            key.bounds(),
            key.doc
        ));
    }
    text
}

fn computed(key: &Key) -> String {
    match key.default {
        Default::Computed(words) => format!(" Default: {words}."),
        Default::Unset => " Not set by default.".to_owned(),
        Default::Text(_) => String::new(),
    }
}

/// The default as TOML, or an example where there is none.
fn example(key: &Key) -> String {
    let quoted = |text: &str| format!("{text:?}");
    match (key.kind, key.default) {
        (Kind::Number(..) | Kind::Switch, Default::Text(text)) => text.to_owned(),
        (_, Default::Text(text)) => quoted(text),
        (Kind::DatabaseUrl, _) => quoted("postgres://outboxd@localhost/shop"),
        (Kind::File, _) => {
            quoted(&format!("/run/secrets/{}", key.name.trim_end_matches("_file").replace('.', "-")))
        }
        // No token that could be used.
        (Kind::Token, _) => quoted("..."),
        (Kind::Hosts, _) => quoted("outboxd.example"),
        (Kind::Brokers, _) => quoted("localhost:9092"),
        (Kind::Patterns, Default::Unset) => "[\"orders.*\", \"billing\"]".to_owned(),
        (Kind::Topic, _) => quoted("dead-letters"),
        (Kind::Prefix, _) => quoted("staging."),
        (Kind::Aliases, _) => "{ \"correlation-id\" = \"x-request-id\" }".to_owned(),
        (Kind::Number(..), Default::Unset | Default::Computed(_)) => "10".to_owned(),
        (_, Default::Unset | Default::Computed(_)) => quoted("outboxd-1"),
    }
}
