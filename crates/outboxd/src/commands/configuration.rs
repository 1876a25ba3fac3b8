//! `config show` and `config check`.

use serde::Serialize;

use crate::cli::Format;
use crate::config::{Config, Shown};
use crate::failure::Failure;
use crate::output;

/// Prints every key, its value and where it comes from.
pub(crate) fn show(config: &Config, format: Format) -> Result<(), Failure> {
    Ok(output::answer(format, &config.shown, |shown| {
        let row = |shown: &Shown| {
            let value = shown.value.clone().unwrap_or_else(|| "-".to_owned());
            [shown.key.clone(), value, shown.from.clone()]
        };
        output::table(["KEY", "VALUE", "FROM"], shown.iter().map(row))
    })?)
}

/// Where from and where to.
#[derive(Debug, Serialize)]
struct Valid<'a> {
    database: String,
    bootstrap_servers: &'a str,
}

/// Says that a configuration that was loaded is valid; one that is not was refused before.
pub(crate) fn check(config: &Config, format: Format) -> Result<(), Failure> {
    let valid = Valid {
        database: config.database.as_ref().map_or_else(String::new, |database| database.shown()),
        bootstrap_servers: &config.kafka.bootstrap_servers,
    };
    Ok(output::answer(format, &valid, |valid| {
        format!("the configuration is valid: {} to {}", valid.database, valid.bootstrap_servers)
    })?)
}
