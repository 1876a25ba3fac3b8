//! Promises and the tests that execute them name each other.

use std::collections::BTreeMap;

use super::{Problem, Source, find, words};

const CONTRACT: &str = "docs/delivery.md";

/// Which test files a module's name in the contract stands for.
fn is_file_of(path: &str, module: &str) -> bool {
    match module {
        "engine" => path == "crates/engine/tests/relay.rs" || path.starts_with("crates/engine/tests/relay/"),
        _ => path == format!("tests/{module}.rs") || path.starts_with(&format!("tests/{module}/")),
    }
}

/// A test that begins its documentation with promises: `/// D1, D3. Why it proves them.`
#[derive(Debug, PartialEq, Eq)]
struct Claim<'a> {
    path: &'a str,
    line: usize,
    test: &'a str,
    promises: Vec<&'a str>,
}

impl Claim<'_> {
    fn is_in(&self, mentions: &[Mention<'_>]) -> bool {
        mentions.iter().any(|mention| mention.test == self.test && is_file_of(self.path, mention.module))
    }
}

/// A line of the contract that names a test.
#[derive(Debug, PartialEq, Eq)]
struct Mention<'a> {
    line: usize,
    module: &'a str,
    test: &'a str,
}

pub(super) fn check(sources: &[Source]) -> Vec<Problem> {
    let Some(contract) = find(sources, CONTRACT) else {
        return vec![Problem::new(CONTRACT, 1, "the contract is missing")];
    };
    let promises = promises(contract);
    let tests: Vec<&Source> = sources
        .iter()
        .filter(|source| source.has_extension(&["rs"]))
        .filter(|source| source.path.starts_with("tests/") || source.path.contains("/tests/"))
        .collect();
    let mut problems = Vec::new();
    for (promise, (line, mentions)) in &promises {
        if mentions.is_empty() {
            problems.push(Problem::new(CONTRACT, *line, format!("no test executes {promise}")));
        }
        for Mention { line, module, test } in mentions {
            let function = format!("fn {test}(");
            let exists = tests
                .iter()
                .any(|source| is_file_of(&source.path, module) && source.text.contains(&function));
            if !exists {
                let says = format!("{promise} names {module}::{test}, which does not exist");
                problems.push(Problem::new(CONTRACT, *line, says));
            }
        }
    }
    for claim in tests.iter().flat_map(|source| claims(source)) {
        let unlisted: Vec<&str> = claim
            .promises
            .iter()
            .copied()
            .filter(|promise| !promises.get(promise).is_some_and(|(_, mentions)| claim.is_in(mentions)))
            .collect();
        if !unlisted.is_empty() {
            let says =
                format!("{} claims {}: {CONTRACT} does not name it there", claim.test, unlisted.join(", "));
            problems.push(Problem::new(claim.path, claim.line, says));
        }
    }
    problems
}

/// By promise: the line of its heading and the tests named below it.
fn promises(contract: &Source) -> BTreeMap<&str, (usize, Vec<Mention<'_>>)> {
    let mut promises: BTreeMap<&str, (usize, Vec<Mention<'_>>)> = BTreeMap::new();
    let mut current = None;
    for (number, line) in contract.numbered() {
        if let Some(heading) = line.strip_prefix("## ") {
            current = heading.split_whitespace().next().filter(|word| is_promise(word));
            if let Some(promise) = current {
                promises.entry(promise).or_insert((number, Vec::new()));
            }
        } else if let Some(promise) = current
            && let Some((module, test)) = line
                .strip_prefix("- `")
                .and_then(|rest| rest.split('`').next())
                .and_then(|path| Some((path.split("::").next()?, path.rsplit_once("::")?.1)))
            && let Some((_, mentions)) = promises.get_mut(promise)
        {
            mentions.push(Mention { line: number, module, test });
        }
    }
    promises
}

fn claims(source: &Source) -> Vec<Claim<'_>> {
    let mut claims = Vec::new();
    let mut documentation: Option<&str> = None;
    for (number, line) in source.numbered() {
        let line = line.trim();
        if let Some(text) = line.strip_prefix("/// ") {
            documentation.get_or_insert(text);
        } else if let Some(test) = function_name(line) {
            let promises = leading_promises(documentation.take().unwrap_or_default());
            if !promises.is_empty() {
                claims.push(Claim { path: &source.path, line: number, test, promises });
            }
        } else if !line.starts_with("#[") && !line.starts_with("///") {
            documentation = None;
        }
    }
    claims
}

fn function_name(line: &str) -> Option<&str> {
    let rest = ["pub ", "async "].iter().fold(line, |rest, word| rest.strip_prefix(word).unwrap_or(rest));
    let (name, _) = rest.strip_prefix("fn ")?.split_once('(')?;
    Some(name)
}

/// `D1, D3. Why` begins with D1 and D3; prose that mentions one later does not claim it.
fn leading_promises(text: &str) -> Vec<&str> {
    let (list, _) = text.split_once('.').unwrap_or((text, ""));
    let found: Vec<&str> = words(list, |letter| letter.is_ascii_alphanumeric()).collect();
    if found.iter().all(|word| is_promise(word)) { found } else { Vec::new() }
}

fn is_promise(word: &str) -> bool {
    word.strip_prefix('D')
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    const TEST: &str = "/// D1, D2. Because.\n#[tokio::test]\nasync fn a_claim() {\n}\n";

    #[test]
    fn promises_and_tests_that_name_each_other_are_in_order() {
        let contract = "## D1 One\n\n- `crash::a_claim`\n\n## D2 Two\n- `crash::a_claim`\n";
        assert_eq!(check(&[source(CONTRACT, contract), source("tests/crash.rs", TEST)]), []);
    }

    #[test]
    fn a_test_that_is_gone_and_a_claim_that_is_not_listed_are_both_found() {
        let contract = "## D1 One\n- `crash::gone`\n## D3 Three\n";
        let problems = check(&[source(CONTRACT, contract), source("tests/crash.rs", TEST)]);
        let says: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(says.len(), 3, "{says:#?}");
        assert!(says[0].starts_with("docs/delivery.md:2: D1 names crash::gone"), "{}", says[0]);
        assert!(says[1].starts_with("docs/delivery.md:3: no test executes D3"), "{}", says[1]);
        assert!(says[2].starts_with("tests/crash.rs:3: a_claim claims D1, D2:"), "{}", says[2]);
    }

    #[test]
    fn prose_about_a_promise_is_no_claim() {
        assert_eq!(leading_promises("Here the exception that D3 names."), Vec::<&str>::new());
        assert_eq!(leading_promises("D1, D3. Also the price of a crash."), ["D1", "D3"]);
    }
}
