//! The schema's name in SQL: the one place where SQL is not the text of a file.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

/// Longest identifier that PostgreSQL keeps, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// The name is not one that an outbox or inbox may have: 1 to 63 of `a-z 0-9 _`, not starting with a digit or with `pg_`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema name {0:?} is not 1 to 63 of a-z, 0-9 and _, or starts with a digit or with pg_")]
pub struct SchemaNameError(String);

/// A schema: the default one, or one that somebody named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SchemaName(String);

impl SchemaName {
    /// The word that the SQL files use, which is also the default schema.
    pub(crate) fn default_of(word: &'static str) -> Self {
        Self(word.to_owned())
    }

    /// Names as `outboxd migrate --schema` takes them.
    pub(crate) fn validated(name: &str) -> Result<Self, SchemaNameError> {
        let legal = (1..=IDENTIFIER_BYTES_MAX).contains(&name.len())
            && !name.starts_with("pg_")
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if legal { Ok(Self(name.to_owned())) } else { Err(SchemaNameError(name.chars().take(80).collect())) }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The statement of a file that calls its schema `word`, for this schema.
    pub(crate) fn statement(&self, sql: &'static str, word: &str) -> SqlStr {
        let sql: Arc<str> = sql.replace(&format!("{word}."), &format!("\"{}\".", self.0)).into();
        AssertSqlSafe(sql).into_sql_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_names_the_schema_and_nothing_else_changes() {
        let shop = SchemaName::validated("shop").unwrap();
        let rendered = shop.statement("select outbox.emit(topic => $1)", "outbox");
        assert_eq!(rendered.as_str(), r#"select "shop".emit(topic => $1)"#);
    }

    #[test]
    fn what_could_be_more_than_a_name_is_refused() {
        for name in ["", "Shop", "a\".b", "1a", "pg_catalog", "a b", "a;drop", &"x".repeat(64)] {
            assert!(SchemaName::validated(name).is_err(), "{name}");
        }
    }
}
