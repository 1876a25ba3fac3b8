//! The configuration reference and the table of metrics say what the code says.

use std::collections::BTreeMap;

use super::{Problem, Source, find, words};

const KEYS: &str = "crates/outboxd/src/config/keys.rs";
const CONFIGURATION: [&str; 2] = ["config/outboxd.toml", "docs/configuration.md"];
const METRICS: &str = "crates/outboxd/src/metrics/declared.rs";
const METRICS_PAGE: &str = "docs/metrics.md";

/// A name and the line where it first appears.
type Names<'a> = BTreeMap<&'a str, usize>;

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    let mut problems = configuration(sources);
    problems.extend(metrics(sources));
    problems
}

fn configuration(sources: &[Source]) -> Vec<Problem> {
    let Some(code) = find(sources, KEYS) else { return vec![Problem::new(KEYS, 1, "is missing")] };
    let keys = declared_keys(code);
    if keys.is_empty() {
        return vec![Problem::new(KEYS, 1, "declares no key: has its shape changed? then change tidy too")];
    }
    let mut problems = Vec::new();
    for path in CONFIGURATION {
        let Some(page) = find(sources, path) else {
            problems.push(Problem::new(path, 1, "is missing"));
            continue;
        };
        let owned = if path.ends_with(".toml") { keys_of_toml(page) } else { keys_of_table(page) };
        let named: Names<'_> = owned.iter().map(|(name, line)| (name.as_str(), *line)).collect();
        problems.extend(differences(KEYS, &keys, path, &named));
    }
    problems
}

/// `name: "relay.page_messages",`
fn declared_keys(code: &Source) -> Names<'_> {
    let mut keys = Names::new();
    for (number, line) in code.numbered() {
        if let Some(name) = line.trim().strip_prefix("name: \"").and_then(|rest| rest.split('"').next()) {
            keys.entry(name).or_insert(number);
        }
    }
    keys
}

/// Sections and the keys below them; a key that is not set begins with `#` and no space.
fn keys_of_toml(page: &Source) -> BTreeMap<String, usize> {
    let mut keys = BTreeMap::new();
    let mut section = String::new();
    for (number, line) in page.numbered() {
        // An array of tables is set by nobody, and so are its keys.
        if let Some(name) = line.strip_prefix("#[[").and_then(|rest| rest.strip_suffix("]]")) {
            section = name.to_owned();
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            // A section within a section is one key, whose contents are somebody else's.
            if section.contains('.') {
                keys.entry(section.clone()).or_insert(number);
            }
        } else if !section.contains('.')
            && let Some((name, _)) = line.strip_prefix('#').unwrap_or(line).split_once(" = ")
            && !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            keys.entry(format!("{section}.{name}")).or_insert(number);
        }
    }
    keys
}

/// Rows of a table that begin with a key: ``| `relay.page_messages` | ...``
fn keys_of_table(page: &Source) -> BTreeMap<String, usize> {
    let rows = page.numbered().filter_map(|(number, line)| {
        let name = line.strip_prefix("| `")?.split('`').next()?;
        name.contains('.').then(|| (name.to_owned(), number))
    });
    rows.collect()
}

fn metrics(sources: &[Source]) -> Vec<Problem> {
    let Some(code) = find(sources, METRICS) else { return vec![Problem::new(METRICS, 1, "is missing")] };
    let mut declared = Names::new();
    for (number, line) in code.numbered() {
        for name in line.split('"').skip(1).step_by(2).filter(|name| name.starts_with("outboxd_")) {
            declared.entry(name).or_insert(number);
        }
    }
    let mut problems = Vec::new();
    match find(sources, METRICS_PAGE) {
        None => problems.push(Problem::new(METRICS_PAGE, 1, "is missing")),
        Some(page) => {
            let rows = page.numbered().filter_map(|(number, line)| {
                let name = line.strip_prefix("| `")?.split('`').next()?;
                name.starts_with("outboxd_").then_some((name, number))
            });
            problems.extend(differences(METRICS, &declared, METRICS_PAGE, &rows.collect()));
        }
    }
    let names_metrics = |source: &&Source| {
        source.path.starts_with("deploy/") || source.path.starts_with("docs/") || source.path == "README.md"
    };
    for source in sources.iter().filter(names_metrics) {
        problems.extend(unknown_metrics(source, &declared));
    }
    problems
}

/// Whatever begins with the prefix must be a metric, or a series of a histogram, or a crate.
fn unknown_metrics(source: &Source, declared: &Names<'_>) -> Vec<Problem> {
    let known = |word: &str| {
        let series = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
        declared.contains_key(word)
            || series.is_some_and(|name| declared.contains_key(name))
            || is_crate(word)
    };
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    source
        .numbered()
        .flat_map(|(number, line)| words(line, is_part).map(move |word| (number, word)))
        // `outboxd_*` in prose means all of them.
        .filter(|(_, word)| word.starts_with("outboxd_") && *word != "outboxd_" && !known(word))
        .map(|(number, word)| Problem::new(&source.path, number, format!("{word} is no metric of ours")))
        .collect()
}

fn is_crate(word: &str) -> bool {
    ["core", "engine", "postgres", "sqlite", "kafka", "testkit"]
        .iter()
        .any(|name| word == format!("outboxd_{name}"))
}

fn differences(code: &str, declared: &Names<'_>, page: &str, named: &Names<'_>) -> Vec<Problem> {
    let missing = declared
        .iter()
        .filter(|(name, _)| !named.contains_key(*name))
        .map(|(name, line)| Problem::new(code, *line, format!("{page} does not name {name}")));
    let unknown = named
        .iter()
        .filter(|(name, _)| !declared.contains_key(*name))
        .map(|(name, line)| Problem::new(page, *line, format!("the code has no {name}")));
    missing.chain(unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[test]
    fn a_key_that_only_one_side_has_is_found_on_both_sides() {
        let problems = configuration(&[
            source(
                KEYS,
                "name: \"relay.instance\",\nname: \"relay.page_messages\",\nname: \"kafka.properties\",\n",
            ),
            source(
                CONFIGURATION[0],
                "[kafka]\n[kafka.properties]\n#\"x.y\" = 1\n\n[relay]\n#page_messages = 1\n#old = 2\n",
            ),
            source(
                CONFIGURATION[1],
                "| `relay.instance` | |\n| `relay.page_messages` | |\n| `kafka.properties` | |\n",
            ),
        ]);
        let says: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            says,
            [
                format!("{KEYS}:1: config/outboxd.toml does not name relay.instance"),
                "config/outboxd.toml:7: the code has no relay.old".to_owned(),
            ]
        );
    }

    #[test]
    fn an_alert_on_a_metric_that_does_not_exist_is_found() {
        let problems = metrics(&[
            source(
                METRICS,
                "gauge(\"outboxd_leader\", \"1\"),\nhistogram(\n\"outboxd_settle_seconds\", X),\n",
            ),
            source(METRICS_PAGE, "| `outboxd_leader` | \n| `outboxd_settle_seconds` |\n"),
            source(
                "deploy/prometheus/alerts.yml",
                "expr: absent(outboxd_leader)\nexpr: rate(outboxd_settle_seconds_count[5m]) > outboxd_gone\n",
            ),
        ]);
        assert_eq!(
            problems,
            [Problem::new("deploy/prometheus/alerts.yml", 2, "outboxd_gone is no metric of ours")]
        );
    }
}
