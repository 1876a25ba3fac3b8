//! What was typed, layer by layer: file, environment, flags.
//!
//! Layers are merged by the `config` crate. Each is flattened first, so that a librdkafka setting has one name wherever it
//! comes from: `"sasl.password"` in the file is `..__KAFKA__PROPERTIES__SASL_PASSWORD` in the environment. No librdkafka
//! setting that may be passed through has an underscore in its name, so nothing is ambiguous.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{ConfigError, Environment, File, FileFormat, Map, Source, Value, ValueKind};
use secrecy::SecretString;

use super::database_url::DRIVER_VARIABLES;
use super::keys::{ENVIRONMENT_PREFIX, LOG_FILTER_VARIABLE};
use super::routes::RawRoute;
use super::{Problem, Problems};

/// The file that is read if no other is named and it exists.
pub(crate) const DEFAULT_FILE: &str = "config/outboxd.toml";

const PROPERTIES: &str = "kafka.properties.";
const ROUTES: &str = "route";
const NO_ROUTES: &str =
    "routes are an array of tables, which only a file can hold: begin each with the line [[route]]";
const FROM_ENVIRONMENT: &str = "\u{1}environment";
const FROM_FLAG: &str = "\u{1}flag";

/// Where a configuration is looked for.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    /// `--config`.
    pub(crate) file: Option<PathBuf>,
    /// The process's environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    /// Keys set by flags.
    pub(crate) flags: Vec<(String, String)>,
}

impl Sources {
    /// This process's environment, and what was typed.
    pub(crate) fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        Self { file, environment: std::env::vars_os().collect(), flags }
    }

    /// <https://no-color.org>: set and not empty means no colour.
    pub(crate) fn color(&self) -> bool {
        !self.environment.iter().any(|(name, value)| name == "NO_COLOR" && !value.is_empty())
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Where a value came from. Later ones win.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// Nobody set it.
    Default,
    /// A file.
    File(PathBuf),
    /// The environment.
    Environment,
    /// A flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => path.display().fmt(f),
            Self::Environment => f.write_str("environment"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A value as it was typed. Any of them may turn out to be a secret, so none is ever shown from here.
#[derive(Clone, Debug)]
pub(crate) struct Typed {
    /// The text.
    pub(crate) text: SecretString,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// Everything that was typed, and what is wrong with the way it was typed.
#[derive(Debug, Default)]
pub(crate) struct RawConfig {
    /// By name, known or not.
    pub(crate) values: BTreeMap<String, Typed>,
    /// librdkafka settings by their own names.
    pub(crate) properties: BTreeMap<String, Typed>,
    /// Policies per topic.
    pub(crate) routes: Vec<RawRoute>,
    /// The database driver's own variables that are set: see [`DRIVER_VARIABLES`].
    pub(crate) driver_variables: Vec<&'static str>,
    /// What could not even be read.
    pub(crate) problems: Problems,
    /// Where the process ends, in crash tests.
    #[cfg(feature = "failpoints")]
    pub(crate) failpoint: Option<crate::failpoint::Failpoint>,
}

impl RawConfig {
    /// Reads every layer. What cannot be read is among the problems, so that it is reported with all others.
    pub(crate) fn read(sources: &Sources) -> Self {
        let mut problems = Problems::default();
        let mut builder = config::Config::builder();
        let file = match &sources.file {
            Some(file) => Some(file.as_path()),
            None => Some(Path::new(DEFAULT_FILE)).filter(|file| file.exists()),
        };
        if let Some(file) = file {
            match read_file(file) {
                Ok(values) => builder = builder.add_source(Layer { values }),
                Err(problem) => problems.push(problem),
            }
        }
        let values = read_environment(&sources.environment, &mut problems);
        builder = builder.add_source(Layer { values });
        let values = sources
            .flags
            .iter()
            .map(|(name, value)| (flat_name(name), Value::new(Some(&FROM_FLAG.to_owned()), value.as_str())))
            .collect();
        builder = builder.add_source(Layer { values });
        let driver_variables = DRIVER_VARIABLES
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| sources.environment.iter().any(|(set, _)| set == name))
            .collect();
        let mut raw = Self { problems, driver_variables, ..Self::default() };
        match builder.build() {
            Ok(merged) => match merged.collect() {
                Ok(merged) => raw.take(merged),
                Err(_) => raw.problems.push(Problem::general("the layers of the configuration do not merge")),
            },
            Err(_) => raw.problems.push(Problem::general("the layers of the configuration do not merge")),
        }
        raw
    }

    /// Reads the failpoint. A crash test that names one that does not exist must not pass for want of a crash.
    #[cfg(feature = "failpoints")]
    pub(crate) fn with_failpoint(mut self, sources: &Sources) -> Self {
        use crate::failpoint::{Failpoint, VARIABLE};
        let set = sources.environment.iter().find(|(name, _)| name.to_str() == Some(VARIABLE));
        if let Some((_, value)) = set {
            self.failpoint = value.to_str().and_then(Failpoint::parse);
            if self.failpoint.is_none() {
                self.problems.push(Problem {
                    key: VARIABLE.to_owned(),
                    said: "must be stage:n, n from 1".to_owned(),
                    origin: Origin::Environment,
                });
            }
        }
        self
    }

    fn take(&mut self, merged: Map<String, Value>) {
        let mut flat = Vec::new();
        flatten("", merged, &mut flat);
        flat.sort_by(|one, other| one.0.cmp(&other.0));
        for (name, value) in flat {
            let origin = origin(&value);
            if name == ROUTES || name.strip_prefix(ROUTES).is_some_and(|rest| rest.starts_with('.')) {
                match RawRoute::all_in(value, &origin) {
                    Some(routes) => self.routes = routes,
                    None => self.problems.push(Problem { key: name, said: NO_ROUTES.to_owned(), origin }),
                }
                continue;
            }
            let Some(text) = text(value) else {
                self.problems.push(Problem {
                    key: name,
                    said: "takes a single value, not a list or a table".to_owned(),
                    origin,
                });
                continue;
            };
            let typed = Typed { text: SecretString::from(text), origin };
            match name.strip_prefix(PROPERTIES) {
                Some(property) => self.properties.insert(property.replace('_', "."), typed),
                None => self.values.insert(name, typed),
            };
        }
    }
}

/// A layer, already flat.
#[derive(Clone, Debug)]
struct Layer {
    values: Map<String, Value>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.values.clone())
    }
}

fn read_file(path: &Path) -> Result<Map<String, Value>, Problem> {
    let refused =
        |said: String| Problem { key: path.display().to_string(), said, origin: Origin::File(path.into()) };
    let contents =
        std::fs::read_to_string(path).map_err(|error| refused(format!("cannot be read: {error}")))?;
    // Parsed here first because the error that `config` returns quotes the line, and with it perhaps a password.
    if let Err(error) = toml::from_str::<toml::Table>(&contents) {
        let line = error.span().map_or(1, |span| contents[..span.start].matches('\n').count() + 1);
        return Err(refused(format!("line {line} is not TOML: {}", error.message())));
    }
    let parsed = File::from_str(&contents, FileFormat::Toml)
        .collect()
        .map_err(|_| refused("is not a configuration file".to_owned()))?;
    let mut flat = Vec::new();
    flatten("", parsed, &mut flat);
    let label = path.display().to_string();
    Ok(flat
        .into_iter()
        .map(|(name, value)| (flat_name(&name), Value::new(Some(&label), value.kind)))
        .collect())
}

/// Reads the variables that are ours. An empty one counts as not set, because compose files and charts write those.
fn read_environment(environment: &[(OsString, OsString)], problems: &mut Problems) -> Map<String, Value> {
    let mut ours = Map::new();
    let mut filter = None;
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        let is_filter = name == LOG_FILTER_VARIABLE;
        if !is_filter && !name.starts_with(ENVIRONMENT_PREFIX) {
            continue;
        }
        match value.to_str() {
            Some(value) if is_filter => filter = Some(value).filter(|value| !value.is_empty()),
            Some(value) => {
                ours.insert(name.to_owned(), value.to_owned());
            }
            None => problems.push(Problem {
                key: name.to_owned(),
                said: "is not UTF-8".to_owned(),
                origin: Origin::Environment,
            }),
        }
    }
    let collected = Environment::with_prefix("OUTBOXD")
        .separator("__")
        .ignore_empty(true)
        .source(Some(ours))
        .collect()
        .unwrap_or_default();
    let label = FROM_ENVIRONMENT.to_owned();
    let mut values: Map<String, Value> = collected
        .into_iter()
        .map(|(name, value)| (flat_name(&name), Value::new(Some(&label), value.kind)))
        .collect();
    if let Some(filter) = filter {
        values.insert("log.filter".to_owned(), Value::new(Some(&label), filter));
    }
    values
}

/// The name under which layers are merged: dots separate sections, and inside a librdkafka setting they are underscores.
fn flat_name(name: &str) -> String {
    match name.strip_prefix(PROPERTIES) {
        Some(property) => format!("{PROPERTIES}{}", property.replace('.', "_")),
        None => name.to_owned(),
    }
}

fn flatten(prefix: &str, table: Map<String, Value>, into: &mut Vec<(String, Value)>) {
    for (name, value) in table {
        let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value.kind {
            ValueKind::Table(table) => flatten(&name, table, into),
            ValueKind::Nil
            | ValueKind::Boolean(_)
            | ValueKind::I64(_)
            | ValueKind::I128(_)
            | ValueKind::U64(_)
            | ValueKind::U128(_)
            | ValueKind::Float(_)
            | ValueKind::String(_)
            | ValueKind::Array(_) => into.push((name, value)),
        }
    }
}

fn origin(value: &Value) -> Origin {
    match value.origin() {
        Some(FROM_ENVIRONMENT) => Origin::Environment,
        Some(FROM_FLAG) => Origin::Flag,
        Some(path) => Origin::File(PathBuf::from(path)),
        None => Origin::Default,
    }
}

/// A value's text; a list of texts is joined by commas, which is how brokers are written elsewhere.
pub(super) fn text(value: Value) -> Option<String> {
    match value.kind {
        ValueKind::Array(items) => {
            let items: Option<Vec<String>> = items.into_iter().map(text).collect();
            Some(items?.join(","))
        }
        ValueKind::Table(_) | ValueKind::Nil => None,
        ValueKind::Boolean(_)
        | ValueKind::I64(_)
        | ValueKind::I128(_)
        | ValueKind::U64(_)
        | ValueKind::U128(_)
        | ValueKind::Float(_)
        | ValueKind::String(_) => value.into_string().ok(),
    }
}
