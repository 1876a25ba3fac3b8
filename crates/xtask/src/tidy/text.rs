//! Rules that a line or a file's name breaks by itself.

use super::{Problem, Source};

const LINES_MAX: usize = 800;

/// The modules that may say that a text is safe as SQL: they render a validated schema name into a file's text.
const SQL_SAFE_IN: &str = "schema.rs";

/// Split, so that this file keeps the rules too.
const NOT_YET: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];
const MACHINE_PATHS: [&str; 4] =
    [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];
const IGNORED: &str = concat!("#[ig", "nore");
const NO_CLAIM: &str = concat!("fn te", "st_");

/// Not a test but the program that another test starts from the same binary.
const OTHER_PROCESS: &str = "= \"the other process";

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    sources.iter().flat_map(check_source).collect()
}

fn check_source(source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut problem = |line: usize, says: String| problems.push(Problem::new(&source.path, line, says));
    if source.path.rsplit('/').next() == Some("mod.rs") {
        problem(1, "a module `read` is `read.rs` beside `read/`, never `mod.rs`".into());
    }
    let lines = source.text.lines().count();
    if source.has_extension(&["rs", "sql", "sh"]) && lines > LINES_MAX {
        problem(LINES_MAX, format!("{lines} lines: what is this file about? at most {LINES_MAX}"));
    }
    let in_sql = source.path.contains("/sql/") && source.has_extension(&["sql"]);
    if in_sql && !source.text.lines().next().is_some_and(|first| first.starts_with("-- ") && first.len() > 20)
    {
        problem(
            1,
            "a statement opens with a header: its question, the index it needs, why each predicate".into(),
        );
    }
    let is_rust = source.has_extension(&["rs"]);
    let mut previous = "";
    for (number, line) in source.numbered() {
        for word in NOT_YET.iter().filter(|word| has_word(line, word)) {
            problem(number, format!("{word}: do it, or write an issue"));
        }
        for path in MACHINE_PATHS.iter().filter(|path| line.contains(**path)) {
            problem(number, format!("{path} is a path of somebody's machine"));
        }
        if is_rust
            && source.is_product()
            && line.contains("AssertSqlSafe")
            && !source.path.ends_with(SQL_SAFE_IN)
        {
            problem(number, format!("AssertSqlSafe occurs only in {SQL_SAFE_IN}"));
        }
        if is_rust && line.trim_start().starts_with(IGNORED) && !line.contains(OTHER_PROCESS) {
            problem(number, "a test never skips".into());
        }
        if is_rust && line.contains(NO_CLAIM) {
            problem(number, "a test's name is a claim, not test_".into());
        }
        if let Some(index) = created_index(line)
            && source.path.starts_with("migrations/")
            && !previous.trim_start().starts_with("--")
            && !source.text.contains(&format!(".{index} is '"))
        {
            problem(number, format!("{index} says nowhere which query it serves"));
        }
        previous = line;
    }
    problems
}

/// `create index NAME on ...`
fn created_index(line: &str) -> Option<&str> {
    const OPTIONS: [&str; 5] = ["unique", "concurrently", "if", "not", "exists"];
    let is_option = |word: &&str| OPTIONS.iter().any(|option| word.eq_ignore_ascii_case(option));
    let mut words = line.split_whitespace().filter(|word| !is_option(word));
    let creates = words.next()?.eq_ignore_ascii_case("create") && words.next()?.eq_ignore_ascii_case("index");
    if creates { words.next() } else { None }
}

fn has_word(line: &str, word: &str) -> bool {
    super::words(line, |letter| letter.is_ascii_alphanumeric() || letter == '_').any(|found| found == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(path: &str, text: &str) -> Vec<String> {
        check(&[Source { path: path.into(), text: text.into() }]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        let unfinished = format!("// {}: later\n", NOT_YET[0]);
        for (path, text) in [
            ("crates/core/src/read/mod.rs", "//! A module.\n"),
            ("crates/core/src/read.rs", unfinished.as_str()),
            ("docs/x.md", concat!("see /ho", "me/me/notes\n")),
            ("crates/postgres/src/read.rs", "use sqlx::AssertSqlSafe;\n"),
            ("crates/postgres/src/sql/read.sql", "select 1\n"),
            ("tests/crash.rs", concat!("#[ig", "nore]\n")),
            ("tests/crash.rs", concat!("fn te", "st_kill() {}\n")),
            ("migrations/postgres/0001_outbox.sql", "create index a on b (c);\n"),
            ("migrations/x/postgres.sql", "create index concurrently if not exists a on b (c);\n"),
        ] {
            assert_eq!(says(path, text).len(), 1, "{path}: {:?}", says(path, text));
        }
        assert_eq!(says("crates/core/src/read.rs", &"//\n".repeat(LINES_MAX + 1)).len(), 1);
    }

    #[test]
    fn what_keeps_the_rules_is_left_alone() {
        for (path, text) in [
            ("crates/postgres/src/schema.rs", "use sqlx::AssertSqlSafe;\n"),
            ("crates/sqlite/src/tests/plans.rs", "use sqlx::AssertSqlSafe;\n"),
            (
                "crates/postgres/src/sql/read.sql",
                "-- Which messages come next? Index message_pkey.\nselect 1\n",
            ),
            ("migrations/sqlite/0001_outbox.sql", "-- The late arm of a page.\ncreate index a on b (c);\n"),
            (
                "migrations/postgres/0001_outbox.sql",
                "create index a on b (c);\ncomment on index o.a is 'A page.';\n",
            ),
            (
                "migrations/x/postgres.sql",
                "create index concurrently if not exists a on b (c);\ncomment on index o.a is 'A page.';\n",
            ),
        ] {
            assert_eq!(says(path, text), Vec::<String>::new());
        }
    }
}
