//! The one-shot commands. Each opens what it needs, answers, and ends.

mod check;

mod configuration;

mod healthcheck;

mod held;

mod migrate;

mod rebase;

mod replay;

mod scheduled;

mod status;

mod verify;

mod trace;

mod trace_indexes;

pub(crate) use check::check;
pub(crate) use configuration::{check as config_check, show as config_show};
pub(crate) use healthcheck::healthcheck;
pub(crate) use held::held;
pub(crate) use migrate::{grants, migrate};
pub(crate) use rebase::rebase;
pub(crate) use replay::replay;
pub(crate) use scheduled::scheduled;
pub(crate) use status::status;
pub(crate) use trace::{Tracer, query_of, trace};
pub(crate) use trace_indexes::trace_indexes;
pub(crate) use verify::verify;
