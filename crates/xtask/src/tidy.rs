//! What a reviewer should not have to check. Reads the sources; builds nothing and starts nothing.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

mod edges;

mod promises;

mod tables;

mod text;

/// Something that breaks a rule of the house.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Problem {
    path: String,
    line: usize,
    says: String,
}

impl Problem {
    fn new(path: &str, line: usize, says: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, says: says.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.says)
    }
}

/// A text file of the repository.
#[derive(Debug)]
struct Source {
    /// Relative to the repository, with slashes.
    path: String,
    text: String,
}

impl Source {
    fn has_extension(&self, extensions: &[&str]) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|extension| extensions.iter().any(|wanted| extension.eq_ignore_ascii_case(wanted)))
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Whether this is code of the product, not of its tests.
    fn is_product(&self) -> bool {
        self.path.starts_with("crates/")
            && self.path.contains("/src/")
            && !["crates/testkit/", "crates/xtask/"].iter().any(|tests| self.path.starts_with(tests))
            && !self.path.split('/').any(|part| part == "tests" || part == "tests.rs")
    }
}

/// Prints every problem with its place; the exit code is 1 if there is one.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let sources = sources(root)?;
    let mut problems = Vec::new();
    problems.extend(edges::check(root)?);
    problems.extend(promises::check(&sources));
    problems.extend(tables::check(&sources));
    problems.extend(text::check(&sources));
    problems.sort();
    for problem in &problems {
        println!("{problem}");
    }
    match problems.len() {
        0 => {
            println!("tidy: nothing to say about {} files", sources.len());
            Ok(ExitCode::SUCCESS)
        }
        count => {
            println!("tidy: {count} to put right");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Every text file that git knows or would add.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .context("run git ls-files")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let paths = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
    let mut sources = Vec::new();
    for path in paths.split_terminator('\0') {
        // Deleted, but not yet in git; or a picture.
        let Ok(bytes) = fs::read(root.join(path)) else { continue };
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    Ok(sources)
}

/// The words of a line that consist of these characters.
fn words(line: &str, is_part: impl Fn(char) -> bool) -> impl Iterator<Item = &str> {
    line.split(move |letter| !is_part(letter)).filter(|word| !word.is_empty())
}

fn find<'a>(sources: &'a [Source], path: &str) -> Option<&'a Source> {
    sources.iter().find(|source| source.path == path)
}
