//! `[[route]]`: what was typed becomes policies per topic.
//!
//! An array of tables has no flat names, so it comes from the file alone: no environment variable and no flag can say it. Which
//! routes go together is the core's knowledge; here are types and unknown keys.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};
use outboxd_core::record::STAMPED_HEADERS;
use outboxd_core::{OnRefused, Route, Routes, TopicPattern};

use super::keys::{Key, ROUTE_KEYS, did_you_mean_in};
use super::raw::{Origin, text};
use super::{Check, Problem, Problems, Shown};

/// One `[[route]]` as it was typed.
#[derive(Clone, Debug)]
pub(crate) struct RawRoute {
    pub(super) settings: BTreeMap<String, Value>,
    pub(super) origin: Origin,
}

impl RawRoute {
    /// The routes that a value holds; `None` if it is no array of tables.
    pub(super) fn all_in(value: Value, origin: &Origin) -> Option<Vec<Self>> {
        let ValueKind::Array(items) = value.kind else { return None };
        let table = |item: Value| match item.kind {
            ValueKind::Table(settings) => Some(settings),
            _other => None,
        };
        let tables: Option<Vec<Map<String, Value>>> = items.into_iter().map(table).collect();
        let route = |settings: Map<String, Value>| Self {
            settings: settings.into_iter().collect(),
            origin: origin.clone(),
        };
        Some(tables?.into_iter().map(route).collect())
    }

    /// Its settings as they may be shown; a route holds no secret.
    pub(super) fn shown(&self, number: usize) -> impl Iterator<Item = Shown> {
        self.settings.iter().map(move |(name, value)| Shown {
            key: key_of(number, name),
            value: Some(shown_value(value)),
            from: self.origin.to_string(),
        })
    }
}

fn shown_value(value: &Value) -> String {
    match &value.kind {
        ValueKind::Table(aliases) => {
            let mut pairs: Vec<_> =
                aliases.iter().map(|(name, value)| format!("{name}={}", shown_value(value))).collect();
            pairs.sort_unstable();
            pairs.join(",")
        }
        _other => text(value.clone()).unwrap_or_default(),
    }
}

fn key_of(number: usize, setting: &str) -> String {
    format!("route.{number}.{setting}")
}

/// The policies of all topics, with the topics that intents may name.
pub(super) fn of(check: &mut Check, typed: &[RawRoute]) -> Routes {
    const ALLOWED: &str = "relay.topics_allowed";
    let (text, origin) = check.get(ALLOWED).unwrap_or((String::new(), Origin::Default));
    let allowed = match patterns(&text) {
        Ok(allowed) => {
            if allowed.is_empty() {
                check.out_of_range(ALLOWED, &text, origin);
            }
            allowed
        }
        Err(said) => {
            check.problems.push(Problem { key: ALLOWED.to_owned(), said, origin });
            Vec::new()
        }
    };
    validate(typed, allowed, &mut check.problems)
}

/// The policies, and everything that is wrong with them.
fn validate(typed: &[RawRoute], allowed: Vec<TopicPattern>, problems: &mut Problems) -> Routes {
    let origin = |number: usize| {
        number
            .checked_sub(1)
            .and_then(|nth| typed.get(nth))
            .map_or(Origin::Default, |typed| typed.origin.clone())
    };
    let mut routes = Vec::new();
    let mut badly_typed = Vec::new();
    for (number, raw) in (1..).zip(typed) {
        let mut reader = Reader { number, raw, problems: Vec::new() };
        routes.push(reader.route());
        badly_typed.extend(reader.problems);
    }
    let routes = Routes::new(allowed, routes);
    let complained: Vec<String> = badly_typed.iter().map(|problem| problem.key.clone()).collect();
    badly_typed.into_iter().for_each(|problem| problems.push(problem));
    for found in routes.problems() {
        let key = key_of(found.route, found.setting);
        // What could not even be read is not also missing.
        if !complained.contains(&key) {
            problems.push(Problem { key, said: found.said, origin: origin(found.route) });
        }
    }
    routes
}

/// Reads one route and collects what is wrong with it.
struct Reader<'a> {
    number: usize,
    raw: &'a RawRoute,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn route(&mut self) -> Route {
        for name in self.raw.settings.keys() {
            if Key::of_route(name).is_none() {
                let hint = did_you_mean_in(ROUTE_KEYS, &format!("route.{name}"))
                    .map_or_else(String::new, |similar| format!("; did you mean {similar}?"));
                self.problem(name, format!("unknown key{hint}"));
            }
        }
        Route {
            topics: self.patterns("topics"),
            on_refused: self.parsed("on_refused", OnRefused::parse).unwrap_or_default(),
            dead_letter: self.parsed("dead_letter", |text| Some(text.to_owned())),
            attempts_max: self
                .parsed("attempts_max", |text| text.parse().ok().filter(|attempts| *attempts <= 1_000)),
            topic_prefix: self.parsed("topic_prefix", |text| Some(text.to_owned())).unwrap_or_default(),
            header_aliases: self.aliases("header_aliases"),
        }
    }

    fn problem(&mut self, setting: &str, said: String) {
        let key = key_of(self.number, setting);
        self.problems.push(Problem { key, said, origin: self.raw.origin.clone() });
    }

    fn refuse(&mut self, setting: &str, value: &str) {
        let bounds = Key::of_route(setting).map_or_else(String::new, Key::bounds);
        self.problem(setting, format!("{value:?} must be {bounds}"));
    }

    fn text(&mut self, setting: &str) -> Option<String> {
        let value = self.raw.settings.get(setting)?.clone();
        let shown = shown_value(&value);
        let text = text(value);
        if text.is_none() {
            self.refuse(setting, &shown);
        }
        text
    }

    fn parsed<T>(&mut self, setting: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(setting)?;
        let parsed = parse(text.trim());
        if parsed.is_none() {
            self.refuse(setting, &text);
        }
        parsed
    }

    fn patterns(&mut self, setting: &str) -> Vec<TopicPattern> {
        let Some(text) = self.text(setting) else { return Vec::new() };
        match patterns(&text) {
            Ok(patterns) => patterns,
            Err(said) => {
                self.problem(setting, said);
                Vec::new()
            }
        }
    }

    fn aliases(&mut self, setting: &str) -> Vec<(&'static str, String)> {
        let Some(value) = self.raw.settings.get(setting).cloned() else { return Vec::new() };
        let shown = shown_value(&value);
        let ValueKind::Table(typed) = value.kind else {
            self.refuse(setting, &shown);
            return Vec::new();
        };
        let typed: BTreeMap<String, Value> = typed.into_iter().collect();
        let mut aliases = Vec::new();
        for (header, alias) in typed {
            let stamped = STAMPED_HEADERS.iter().find(|stamped| **stamped == header);
            match (stamped, text(alias)) {
                (Some(stamped), Some(alias)) => aliases.push((*stamped, alias)),
                (None, _) => {
                    let names = STAMPED_HEADERS.join(", ");
                    self.problem(setting, format!("{header:?} is no header of the relay: one of {names}"));
                }
                (Some(_), None) => self.problem(setting, format!("{header:?} takes one name")),
            }
        }
        aliases
    }
}

/// Patterns as they are typed: a list, or several separated by commas.
fn patterns(text: &str) -> Result<Vec<TopicPattern>, String> {
    let patterns = text.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
    patterns.map(|pattern| pattern.parse::<TopicPattern>().map_err(|error| error.to_string())).collect()
}
