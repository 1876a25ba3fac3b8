//! The one-shot commands. Each opens what it needs, answers, and ends.

mod configuration;

mod healthcheck;

mod migrate;

pub(crate) use configuration::{check as config_check, show as config_show};
pub(crate) use healthcheck::healthcheck;
pub(crate) use migrate::{grants, migrate};
