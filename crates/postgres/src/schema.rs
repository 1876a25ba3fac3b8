//! Names in SQL: the one place where SQL is not the text of a file.
//!
//! Every SQL file says schema `outbox` (the inbox's say `inbox`) and is valid as it stands. [`render`] rewrites it for another schema. It knows just
//! enough of SQL's lexical rules to tell code from comments and literals:
//!
//! - in code, also inside dollar-quoted bodies, the bare word `outbox` always means the schema;
//! - a literal is rewritten only where it names an object and says so by a cast: `'outbox.message'::regclass` (or any other
//!   `reg*` type), `'outbox'::name`;
//! - every other literal and every comment stays. So settings are called `outbox.correlation_id` and so on whatever the
//!   schema is called: an application sets them without knowing where its outbox lives.
//!
//! What is inserted is a quoted identifier made of a [`SchemaName`] or a [`RoleName`], which is why the assertion that the
//! result is safe to execute stands here and nowhere else.

use std::fmt;
use std::str::FromStr;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// The word that the SQL files use for the schema.
const WORD: &str = "outbox";

/// Longest identifier that PostgreSQL keeps, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// The schema that holds an outbox: 1 to 63 of `a-z 0-9 _`, not starting with a digit or with `pg_`.
///
/// Narrower than PostgreSQL, so that psql, a URL and a configuration file all write it without quotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SchemaName(String);

/// The name is not one that a schema may have here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema name {0:?} is not 1 to 63 of a-z, 0-9 and _, or starts with a digit or with pg_")]
pub struct SchemaNameError(String);

impl SchemaName {
    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SchemaName {
    fn default() -> Self {
        Self(WORD.to_owned())
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SchemaName {
    type Err = SchemaNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let legal = (1..=IDENTIFIER_BYTES_MAX).contains(&name.len())
            && !name.starts_with("pg_")
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if legal { Ok(Self(name.to_owned())) } else { Err(SchemaNameError(name.chars().take(80).collect())) }
    }
}

/// A database role as it is written in SQL, quoted: role names may hold anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoleName(String);

/// The name is not one that a role can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("role name {0:?} is empty, longer than 63 bytes, or holds a control character")]
pub struct RoleNameError(String);

impl RoleName {
    /// Its text, unquoted.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RoleName {
    type Err = RoleNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let legal = (1..=IDENTIFIER_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        if legal { Ok(Self(name.to_owned())) } else { Err(RoleNameError(name.chars().take(80).collect())) }
    }
}

/// The SQL of a file, for this schema.
#[must_use]
pub fn render(sql: &'static str, schema: &SchemaName) -> SqlStr {
    render_word(sql, WORD, schema)
}

/// The SQL of a file that calls its schema by another word, for this schema.
#[must_use]
pub(crate) fn render_word(sql: &'static str, word: &'static str, schema: &SchemaName) -> SqlStr {
    if schema.as_str() == word {
        return sql.into_sql_str();
    }
    AssertSqlSafe(rewrite(sql, &[(word, schema.as_str())])).into_sql_str()
}

/// The SQL of a file that speaks of its schema and of one role by words of its own, for this schema and role.
#[must_use]
pub(crate) fn render_for_role(
    sql: &'static str,
    schema_word: &'static str,
    schema: &SchemaName,
    role_word: &'static str,
    role: &RoleName,
) -> SqlStr {
    AssertSqlSafe(rewrite(sql, &[(schema_word, schema.as_str()), (role_word, role.as_str())])).into_sql_str()
}

/// Replaces words by quoted identifiers.
fn rewrite(sql: &str, words: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(sql.len() + 256);
    let mut rest = sql;
    while !rest.is_empty() {
        let (token, after) = rest.split_at(token_len(rest));
        if token.starts_with('\'') && is_cast_to_a_name(after) {
            out.push_str(&rewrite_literal(token, words, after.starts_with("::name")));
        } else {
            match words.iter().find(|(word, _)| *word == token) {
                Some((_, name)) => out.push_str(&quoted(name)),
                None => out.push_str(token),
            }
        }
        rest = after;
    }
    out
}

/// Replaces the first word of `'outbox'::name`, which is compared as it is, or of `'outbox.x'::regclass`, which is parsed as
/// SQL.
fn rewrite_literal(token: &str, words: &[(&str, &str)], plain: bool) -> String {
    let content = &token[1..token.len() - 1];
    let (first, tail) = content.split_at(token_len(content));
    match words.iter().find(|(word, _)| *word == first) {
        Some((_, name)) if plain => format!("'{}{tail}'", name.replace('\'', "''")),
        Some((_, name)) => format!("'{}{tail}'", quoted(name).replace('\'', "''")),
        None => token.to_owned(),
    }
}

fn is_cast_to_a_name(after_literal: &str) -> bool {
    ["::reg", "::name"].iter().any(|cast| after_literal.starts_with(cast))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Length of the token at the start of `sql`: a comment, a literal, a quoted identifier, a word, or one character. Dollar
/// quotes are no token: what is inside them is code.
fn token_len(sql: &str) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$');
    let Some(first) = sql.chars().next() else { return 0 };
    if sql.starts_with("--") {
        return sql.find('\n').unwrap_or(sql.len());
    }
    if sql.starts_with("/*") {
        return sql.find("*/").map_or(sql.len(), |end| end + 2);
    }
    match first {
        quote @ ('\'' | '"') => quoted_len(sql, quote),
        letter if letter.is_alphabetic() || letter == '_' => {
            sql.find(|c: char| !is_word(c)).unwrap_or(sql.len())
        }
        other => other.len_utf8(),
    }
}

/// Length of a literal or quoted identifier; a doubled quote does not end it.
fn quoted_len(sql: &str, quote: char) -> usize {
    let mut chars = sql.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if c == quote && chars.next_if(|(_, next)| *next == quote).is_none() {
            return at + 1;
        }
    }
    sql.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIGRATION: &str = include_str!("../../../migrations/postgres/0001_outbox.sql");

    fn schema(name: &str) -> SchemaName {
        name.parse().unwrap()
    }

    fn rendered(sql: &'static str, name: &str) -> String {
        render(sql, &schema(name)).as_str().to_owned()
    }

    #[test]
    fn the_default_schema_leaves_a_file_as_it_is() {
        assert_eq!(render(MIGRATION, &SchemaName::default()).as_str(), MIGRATION);
    }

    #[test]
    fn code_is_rewritten_also_inside_dollar_quotes() {
        assert_eq!(
            rendered("create schema outbox; do $$ begin perform outbox.refuse('x'); end $$", "shop"),
            r#"create schema "shop"; do $$ begin perform "shop".refuse('x'); end $$"#
        );
    }

    #[test]
    fn settings_keep_their_names_whatever_the_schema() {
        let sql =
            "select current_setting('outbox.correlation_id', true), 'it''s outbox.x' -- outbox.message isn't";
        assert_eq!(rendered(sql, "shop"), sql);
    }

    #[test]
    fn a_literal_that_is_cast_to_a_name_is_rewritten() {
        assert_eq!(
            rendered(
                "select 'outbox.message'::regclass, 'outbox'::regnamespace, nspname = 'outbox'::name",
                "order"
            ),
            r#"select '"order".message'::regclass, '"order"'::regnamespace, nspname = 'order'::name"#
        );
    }

    #[test]
    fn longer_words_are_other_words() {
        let sql = r#"select outbox_x, xoutbox, "outbox", $1 from my.outboxes /* outbox */"#;
        assert_eq!(rendered(sql, "shop"), sql);
    }

    #[test]
    fn a_role_is_quoted_however_it_is_called() {
        let role = r#"we"ird; drop table x --'"#.parse::<RoleName>().unwrap();
        let sql = render_for_role(
            "grant usage on schema outbox to the_role; select 'the_role'::regrole, rolname = 'the_role'::name",
            WORD,
            &SchemaName::default(),
            "the_role",
            &role,
        );
        assert_eq!(
            sql.as_str(),
            r#"grant usage on schema "outbox" to "we""ird; drop table x --'"; select '"we""ird; drop table x --''"'::regrole, rolname = 'we"ird; drop table x --'''::name"#
        );
    }

    /// Walks a file and what it was rendered to side by side: every token is the same, or names the schema.
    fn differs_by_the_name_alone(name: &str) {
        let rendered = rendered(MIGRATION, name);
        let (mut before, mut after) = (MIGRATION, rendered.as_str());
        let mut names = 0;
        while !before.is_empty() {
            let (was, was_rest) = before.split_at(token_len(before));
            let (is, is_rest) = after.split_at(token_len(after));
            if was == WORD || (was == "'outbox'" && was_rest.starts_with("::name")) {
                let expected = if was == WORD { format!("\"{name}\"") } else { format!("'{name}'") };
                assert_eq!(is, expected);
                names += 1;
            } else {
                assert_eq!(is, was);
            }
            (before, after) = (was_rest, is_rest);
        }
        assert!(after.is_empty() && names > 50, "{names} names");
    }

    #[test]
    fn a_name_that_also_stands_in_a_text_of_the_file_changes_no_text() {
        differs_by_the_name_alone("_");
        differs_by_the_name_alone("text");
    }

    proptest! {
        #[test]
        fn a_rendered_file_differs_from_the_file_by_the_name_alone(name in "[a-z_][a-z0-9_]{0,62}") {
            prop_assume!(!name.starts_with("pg_") && name != WORD);
            differs_by_the_name_alone(&name);
        }

        #[test]
        fn whatever_is_not_a_plain_lower_case_name_is_no_schema_name(name in any::<String>()) {
            let plain = !name.is_empty()
                && name.len() <= 63
                && !name.starts_with("pg_")
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            prop_assert_eq!(name.parse::<SchemaName>().is_ok(), plain);
        }

        #[test]
        fn tokens_cover_any_text_without_splitting_a_character(text in any::<String>()) {
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let len = token_len(rest);
                prop_assert!(len > 0 && rest.is_char_boundary(len));
                rest = &rest[len..];
            }
        }
    }
}
