//! Arrows between crates point down only, and each crate leaves alone what is not its business.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Problem;

/// What a crate may know of the house, and what it must not know of the world, unless a feature asks for it.
struct Rule {
    package: &'static str,
    may_use: &'static [&'static str],
    never: &'static [&'static str],
}

const IO: &[&str] = &["tokio", "tokio-util", "sqlx", "rdkafka", "axum", "rand", "tracing", "opentelemetry"];
const ADAPTER: &[&str] = &["outboxd-core", "outboxd-engine"];

const RULES: &[Rule] = &[
    Rule { package: "outboxd-core", may_use: &[], never: IO },
    Rule {
        package: "outboxd-engine",
        may_use: &["outboxd-core"],
        never: &["sqlx", "rdkafka", "axum", "metrics", "opentelemetry"],
    },
    Rule {
        package: "outboxd-postgres",
        may_use: ADAPTER,
        never: &["rdkafka", "axum", "metrics", "opentelemetry"],
    },
    Rule {
        package: "outboxd-sqlite",
        may_use: ADAPTER,
        never: &["rdkafka", "axum", "metrics", "opentelemetry"],
    },
    Rule { package: "outboxd-kafka", may_use: ADAPTER, never: &["sqlx", "axum", "metrics", "opentelemetry"] },
    Rule { package: "outbox-client", may_use: &[], never: &["rdkafka", "axum", "metrics", "tracing"] },
    Rule { package: "outboxd-testkit", may_use: ADAPTER, never: &[] },
    Rule {
        package: "outboxd",
        may_use: &["outboxd-core", "outboxd-engine", "outboxd-postgres", "outboxd-sqlite", "outboxd-kafka"],
        never: &[],
    },
    Rule { package: "xtask", may_use: &["outboxd-testkit"], never: &["sqlx", "rdkafka"] },
];

/// What may be used by every crate's tests.
const FOR_TESTS: [&str; 2] = ["outboxd-testkit", "outbox-client"];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    /// Behind a feature: the crate's user decides.
    #[serde(default)]
    optional: bool,
}

pub(super) fn check(root: &Path) -> Result<Vec<Problem>> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    Ok(metadata
        .packages
        .iter()
        .flat_map(|package| check_package(root, package, &metadata.packages))
        .collect())
}

fn check_package(root: &Path, package: &Package, all: &[Package]) -> Vec<Problem> {
    let manifest = Path::new(&package.manifest_path);
    let path = manifest.strip_prefix(root).unwrap_or(manifest).display().to_string();
    let text = std::fs::read_to_string(manifest).unwrap_or_default();
    let line_of =
        |name: &str| text.lines().position(|line| line.starts_with(name)).map_or(1, |index| index + 1);
    let Some(rule) = RULES.iter().find(|rule| rule.package == package.name) else {
        let says = format!(
            "crate {} has no place in the drawing: add it to ARCHITECTURE.md and to tidy",
            package.name
        );
        return vec![Problem::new(&path, 1, says)];
    };
    let of_house = |name: &str| all.iter().any(|package| package.name == name);
    let mut problems = Vec::new();
    for Dependency { name, kind, optional } in &package.dependencies {
        let for_tests = kind.as_deref() == Some("dev");
        let allowed =
            rule.may_use.contains(&name.as_str()) || (for_tests && FOR_TESTS.contains(&name.as_str()));
        if of_house(name) && !allowed {
            let says = format!("{} must not use {name}: arrows point down only", package.name);
            problems.push(Problem::new(&path, line_of(name), says));
        }
        if !for_tests && !optional && rule.never.contains(&name.as_str()) {
            let says = format!("{} must not use {name}: not its business", package.name);
            problems.push(Problem::new(&path, line_of(name), says));
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.into(),
            manifest_path: format!("/repository/{name}/Cargo.toml"),
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency {
                    name: (*name).into(),
                    kind: kind.map(Into::into),
                    optional: false,
                })
                .collect(),
        }
    }

    fn problems(name: &str, dependencies: &[(&str, Option<&str>)]) -> usize {
        let house: Vec<Package> = RULES.iter().map(|rule| package(rule.package, &[])).collect();
        check_package(Path::new("/repository"), &package(name, dependencies), &house).len()
    }

    #[test]
    fn an_arrow_that_points_up_or_sideways_is_refused() {
        assert_eq!(problems("outboxd-postgres", &[("outboxd-engine", None), ("sqlx", None)]), 0);
        assert_eq!(problems("outboxd-postgres", &[("outboxd-kafka", None)]), 1);
        assert_eq!(problems("outboxd-core", &[("outboxd-engine", None)]), 1);
        assert_eq!(problems("outboxd-core", &[("tokio", None)]), 1);
    }

    #[test]
    fn the_testkit_is_for_tests_alone() {
        assert_eq!(problems("outboxd-kafka", &[("outboxd-testkit", Some("dev"))]), 0);
        assert_eq!(problems("outboxd-kafka", &[("outboxd-testkit", None)]), 1);
        assert_eq!(problems("xtask", &[("outboxd-testkit", None)]), 0);
    }

    #[test]
    fn the_client_stands_alone_and_drags_no_kafka_into_an_application() {
        assert_eq!(problems("outbox-client", &[("sqlx", None), ("rdkafka", Some("dev"))]), 0);
        assert_eq!(problems("outbox-client", &[("rdkafka", None)]), 1);
        assert_eq!(problems("outbox-client", &[("outboxd-core", None)]), 1);
        assert_eq!(problems("outboxd", &[("outbox-client", Some("dev"))]), 0);
        assert_eq!(problems("outboxd", &[("outbox-client", None)]), 1);
    }

    #[test]
    fn a_crate_that_nobody_drew_is_named() {
        assert_eq!(problems("outboxd-helpers", &[]), 1);
    }
}
