//! What the project promises, executed against a real database, a real Kafka broker and the real relay.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod support;

mod config;

mod cli;

mod http;

mod admin;

mod migrations;

mod trace_indexes;

mod writing;

mod grants;

mod client;

mod inbox;

mod recipes;

mod spans;

mod correlation;

mod operate;

mod trace;

mod conformance;

mod explorer;

mod plans;

mod publisher;

mod relay;

mod verdicts;

mod routes;

mod scheduling;

mod idempotency;

mod large;

mod fuzz;

mod crash;

mod poison;

mod outage;

mod database_faults;

mod failover;

mod restore;

mod sweep;

mod verify;

mod canary;

mod replay;

mod leadership;

mod tls;

mod demo;
