//! `config show` and `config check`.

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

/// Says that a configuration that was loaded is valid; one that is not was refused before.
pub(crate) fn check(config: &Config) -> Result<(), Failure> {
    let database = config.database.as_ref().map_or_else(String::new, |database| database.shown());
    Ok(output::print(&format!(
        "the configuration is valid: {database} to {}",
        config.kafka.bootstrap_servers
    ))?)
}
