//! What the recipes need to run: a language's runtime, which is there or not, and their dependencies, which are fetched once.

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use outboxd_testkit::cache;

/// The two programs of a recipe, ready to run.
#[derive(Debug)]
pub(super) struct Recipe {
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(&'static str, OsString)>,
    producer: PathBuf,
    consumer: PathBuf,
    /// Java's drivers have URLs of their own.
    jdbc: bool,
}

impl Recipe {
    pub(super) fn producer(&self) -> Command {
        self.command(&self.producer)
    }

    pub(super) fn consumer(&self) -> Command {
        self.command(&self.consumer)
    }

    /// For compiled programs `program` is `env`, so that all are started alike.
    fn command(&self, script: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg(script).envs(self.variables.iter().cloned());
        command
    }

    /// A URL of a role that needs no password, as the language's driver wants it.
    pub(super) fn url(&self, url: &str) -> String {
        if !self.jdbc {
            return url.to_owned();
        }
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        let (user, place) = rest.split_once('@').unwrap_or(("", rest));
        let separator = if place.contains('?') { '&' } else { '?' };
        format!("jdbc:postgresql://{place}{separator}user={user}")
    }
}

pub(super) fn python() -> Result<Option<Recipe>> {
    let Some(version) = version("python3", &["-m", "pip", "--version"]) else {
        return Ok(not_run("Python", "python3 with pip"));
    };
    let here = recipe("python");
    let requirements = here.join("requirements.txt");
    let packages = fetched("python", &version, &[&requirements], |directory| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--only-binary", ":all:", "--target"])
            .arg(directory)
            .arg("--requirement")
            .arg(&requirements);
        done(pip)
    })?;
    Ok(Some(Recipe {
        program: "python3".into(),
        arguments: Vec::new(),
        variables: vec![("PYTHONPATH", packages.into()), ("PYTHONDONTWRITEBYTECODE", "1".into())],
        producer: here.join("producer.py"),
        consumer: here.join("consumer.py"),
        jdbc: false,
    }))
}

pub(super) fn java() -> Result<Option<Recipe>> {
    if version("javac", &["-version"]).is_none() || !cache::has_maven() {
        return Ok(not_run("Java", "a JDK and Maven"));
    }
    let here = recipe("java");
    let pom = here.join("pom.xml");
    let jars = fetched("java", "", &[&pom], |directory| {
        let mut output = OsString::from("-DoutputDirectory=");
        output.push(directory);
        let mut maven = Command::new("mvn");
        maven.args(["--batch-mode", "--quiet", "dependency:copy-dependencies", "-DincludeScope=runtime"]);
        maven.arg(output).arg("--file").arg(&pom);
        done(maven)
    })?;
    let mut classes = jars.into_os_string();
    classes.push("/*");
    Ok(Some(Recipe {
        program: "java".into(),
        arguments: vec!["-Xmx128m".into(), "-XX:+UseSerialGC".into(), "-cp".into(), classes],
        variables: Vec::new(),
        producer: here.join("Producer.java"),
        consumer: here.join("Consumer.java"),
        jdbc: true,
    }))
}

pub(super) fn go() -> Result<Option<Recipe>> {
    let files = ["go.mod", "go.sum", "producer/main.go", "consumer/main.go"];
    let Some(programs) = go_programs("go", &recipe("go"), &files)? else {
        return Ok(not_run("Go", "go"));
    };
    Ok(Some(Recipe {
        program: "env".into(),
        arguments: Vec::new(),
        variables: Vec::new(),
        producer: programs.join("producer"),
        consumer: programs.join("consumer"),
        jdbc: false,
    }))
}

/// The directory with the programs of a Go module, built once; none if there is no Go.
pub(crate) fn go_programs(name: &str, module: &Path, files: &[&str]) -> Result<Option<PathBuf>> {
    let Some(version) = version("go", &["version"]) else { return Ok(None) };
    let sources: Vec<PathBuf> = files.iter().map(|file| module.join(file)).collect();
    let sources: Vec<&Path> = sources.iter().map(PathBuf::as_path).collect();
    let modules = cache::directory()?;
    let programs = fetched(name, &version, &sources, |directory| {
        let mut build = Command::new("go");
        build
            .args(["build", "-modcacherw", "-buildvcs=false", "-o"])
            .arg(directory)
            .arg("./...")
            .current_dir(module);
        build.env("GOMODCACHE", modules.join("go-modules")).env("GOCACHE", modules.join("go-build"));
        done(build)
    })?;
    Ok(Some(programs))
}

pub(super) fn node() -> Result<Option<Recipe>> {
    let Some(version) = version("node", &["--version"]).filter(|_| version("npm", &["--version"]).is_some())
    else {
        return Ok(not_run("Node", "node and npm"));
    };
    let here = recipe("node");
    let files = ["package.json", "package-lock.json", ".npmrc"].map(|file| here.join(file));
    let lock: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let packages = fetched("node", &version, &lock, |directory| {
        for file in &files {
            fs::copy(file, directory.join(file.file_name().context("a file has a name")?))?;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--ignore-scripts", "--loglevel=error"]).current_dir(directory);
        done(npm)
    })?;
    Ok(Some(Recipe {
        program: "node".into(),
        arguments: Vec::new(),
        variables: vec![("NODE_PATH", packages.join("node_modules").into())],
        producer: here.join("producer.js"),
        consumer: here.join("consumer.js"),
        jdbc: false,
    }))
}

fn recipe(language: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes").join(language)
}

/// The one thing that a test may leave out: a language that this machine does not have.
fn not_run(language: &str, missing: &str) -> Option<Recipe> {
    eprintln!("the recipe for {language} was not run: {missing} is not on this machine");
    None
}

/// What the command answers, if it is there and works.
fn version(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A directory of the cache for this runtime and these files, filled once.
fn fetched(
    language: &str,
    version: &str,
    files: &[&Path],
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    version.hash(&mut hasher);
    for file in files {
        fs::read(file).with_context(|| format!("read {}", file.display()))?.hash(&mut hasher);
    }
    cache::filled(&format!("recipe-{language}-{:016x}", hasher.finish()), fill)
}

fn done(mut command: Command) -> Result<()> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{command:?}: {} {}", out.trim(), err.trim());
    }
    Ok(())
}
