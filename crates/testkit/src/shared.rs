//! The servers that all tests of a run share. `cargo xtask test` and `cargo xtask services up` start them.

/// Names the shared PostgreSQL server: the superuser's URL of its database `postgres`.
pub const POSTGRES_VARIABLE: &str = "OUTBOXD_TEST_POSTGRES_URL";

/// Names the shared Kafka broker: its bootstrap address.
pub const KAFKA_VARIABLE: &str = "OUTBOXD_TEST_KAFKA";

/// The superuser's URL of the shared PostgreSQL server.
///
/// # Panics
/// There is none. A test never skips.
#[must_use]
pub fn postgres_url() -> String {
    required(POSTGRES_VARIABLE)
}

/// The bootstrap address of the shared Kafka broker.
///
/// # Panics
/// There is none. A test never skips.
#[must_use]
pub fn kafka() -> String {
    required(KAFKA_VARIABLE)
}

fn required(name: &str) -> String {
    crate::cache::variable(name).unwrap_or_else(|| {
        panic!(
            "{name} is not set: run `cargo xtask test`, or `cargo xtask services up` and export what it prints"
        )
    })
}
