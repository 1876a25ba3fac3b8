//! Policies per topic: where a message goes, what becomes of it when it is refused, and whether it may go at all.
//!
//! A route is chosen by the topic that the *intent* names. Everything behind that choice speaks of the destination: the topic at
//! Kafka, which is the intent's with the route's prefix. No two routes match the same topic, so their order means nothing; that
//! is decided exactly, not by trying examples ([`TopicPattern::meets`]).

use std::str::FromStr;
use std::sync::Arc;

use crate::record::{Refusal, STAMPED_HEADERS, own_header_is_legal, shortened, topic_is_legal};

/// Topics by name: `*` stands for any run of characters, also none; everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern(String);

/// Not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no topic pattern: 1 to 249 of a-z A-Z 0-9 . _ - and *")]
pub struct TopicPatternError(String);

impl FromStr for TopicPattern {
    type Err = TopicPatternError;

    fn from_str(text: &str) -> Result<Self, TopicPatternError> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'*');
        if (1..=249).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TopicPatternError(shortened(text)))
        }
    }
}

impl TopicPattern {
    /// As it was written, which is also how SQL's `GLOB` has it: no other character that is special there can stand in one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As SQL's `LIKE` has it, escaped with a backslash.
    #[must_use]
    pub fn like(&self) -> String {
        self.0.replace('_', "\\_").replace('*', "%")
    }

    /// The one topic that it names; `None` if it holds a `*`.
    #[must_use]
    pub fn only(&self) -> Option<&str> {
        (!self.0.contains('*')).then_some(self.0.as_str())
    }

    /// Whether it matches the topic.
    ///
    /// The last `*` that was passed takes one character more whenever the rest does not fit: quadratic at worst, for names of
    /// at most 249 characters.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let (pattern, topic) = (self.0.as_bytes(), topic.as_bytes());
        let (mut at, mut next) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        while next < topic.len() {
            match pattern.get(at) {
                Some(b'*') => {
                    star = Some((at, next));
                    at += 1;
                }
                Some(byte) if *byte == topic[next] => {
                    at += 1;
                    next += 1;
                }
                Some(_) | None => {
                    let Some((starred, taken)) = star else { return false };
                    star = Some((starred, taken + 1));
                    at = starred + 1;
                    next = taken + 1;
                }
            }
        }
        pattern[at..].iter().all(|byte| *byte == b'*')
    }

    /// Whether some name is matched by both.
    ///
    /// From the ends of the patterns to their beginnings: two rests have a name in common if their first characters are the same
    /// and what follows has one, or if a `*` at the front of either can end here or take the other's first.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let (one, two) = (self.0.as_bytes(), other.0.as_bytes());
        // `below[j]`: whether one[i + 1..] and two[j..] have a name in common.
        let mut below = vec![false; two.len() + 1];
        for i in (0..=one.len()).rev() {
            let mut row = vec![false; two.len() + 1];
            for j in (0..=two.len()).rev() {
                row[j] = match (one.get(i), two.get(j)) {
                    (None, None) => true,
                    (Some(b'*'), None) => below[j],
                    (Some(b'*'), Some(_)) => below[j] || row[j + 1],
                    (None, Some(b'*')) => row[j + 1],
                    (Some(_), Some(b'*')) => row[j + 1] || below[j],
                    (Some(byte), Some(its)) => byte == its && below[j + 1],
                    (Some(_), None) | (None, Some(_)) => false,
                };
            }
            below = row;
        }
        below[0]
    }
}

/// What a parked message means for the later ones of its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefused {
    /// They wait behind it until an operator decides.
    #[default]
    BlockKey,
    /// They go on without it.
    Skip,
}

impl OnRefused {
    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlockKey => "block_key",
            Self::Skip => "skip",
        }
    }

    /// The policy of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::BlockKey, Self::Skip].into_iter().find(|policy| policy.as_str() == word)
    }
}

/// The policy of the topics that its patterns match. The default is what topics without a route get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Matched against the topic that the intent names.
    pub topics: Vec<TopicPattern>,
    /// What a parked message means for its key.
    pub on_refused: OnRefused,
    /// The topic that gets a copy of each parked message, by its full name.
    pub dead_letter: Option<String>,
    /// Attempts after which a message is parked; `None`: as for all others.
    pub attempts_max: Option<u32>,
    /// What stands before the intent's topic at Kafka.
    pub topic_prefix: String,
    /// Headers of the relay, of [`STAMPED_HEADERS`], that are sent under another name too.
    pub header_aliases: Vec<(&'static str, String)>,
}

/// Where messages of a topic go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The topic at Kafka.
    pub topic: Arc<str>,
    /// The policy.
    pub route: Arc<Route>,
    /// Why none of them goes anywhere.
    pub refusal: Option<Refusal>,
}

/// Something that is wrong with the routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteProblem {
    /// Which, counted from 1 in the order in which they were written.
    pub route: usize,
    /// The setting that it is about.
    pub setting: &'static str,
    /// What is wrong, and what would be right.
    pub said: String,
}

/// The policies of all topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    allowed: Vec<TopicPattern>,
    routes: Vec<Arc<Route>>,
    otherwise: Arc<Route>,
}

impl Default for Routes {
    /// Every topic is allowed, and none has a policy of its own.
    fn default() -> Self {
        Self::new(vec![TopicPattern("*".to_owned())], Vec::new())
    }
}

impl Routes {
    /// Policies, and the only topics that intents may name.
    #[must_use]
    pub fn new(allowed: Vec<TopicPattern>, routes: Vec<Route>) -> Self {
        let routes = routes.into_iter().map(Arc::new).collect();
        Self { allowed, routes, otherwise: Arc::default() }
    }

    /// The policies, in the order in which they were written.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().map(|route| &**route)
    }

    /// Where messages go whose intents name this topic.
    #[must_use]
    pub fn destination(&self, topic: &str) -> Destination {
        let matching = |route: &&Arc<Route>| route.topics.iter().any(|pattern| pattern.matches(topic));
        let route = Arc::clone(self.routes.iter().find(matching).unwrap_or(&self.otherwise));
        let destination: Arc<str> = Arc::from(format!("{}{topic}", route.topic_prefix));
        let refusal = if !topic_is_legal(&destination) {
            Some(Refusal::IllegalTopic { topic: shortened(&destination) })
        } else if !self.allowed.iter().any(|pattern| pattern.matches(topic)) {
            Some(Refusal::TopicNotAllowed { topic: shortened(topic) })
        } else {
            None
        };
        Destination { topic: destination, route, refusal }
    }

    /// Everything that is wrong with them.
    #[must_use]
    pub fn problems(&self) -> Vec<RouteProblem> {
        let mut problems = Vec::new();
        for (number, route) in (1..).zip(self.iter()) {
            let mut problem = |setting, said: String| {
                problems.push(RouteProblem { route: number, setting, said });
            };
            route.own_problems(&mut problem);
            for (later, other) in (1..).zip(self.iter()).skip(number) {
                for (pattern, its) in route.meeting(other) {
                    let (pattern, its) = (pattern.as_str(), its.as_str());
                    problem(
                        "topics",
                        format!(
                            "{pattern:?} of route {number} and {its:?} of route {later} match the same topics: \
                             a topic has one route"
                        ),
                    );
                }
            }
        }
        problems
    }
}

impl Route {
    /// Pairs of a pattern of this and one of the other that match a topic in common.
    fn meeting<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a TopicPattern, &'a TopicPattern)> {
        let pairs = self.topics.iter().flat_map(|pattern| other.topics.iter().map(move |its| (pattern, its)));
        pairs.filter(|(pattern, its)| pattern.meets(its))
    }

    fn own_problems(&self, problem: &mut impl FnMut(&'static str, String)) {
        if self.topics.is_empty() {
            problem("topics", "is empty: name at least one topic or pattern".to_owned());
        }
        if self.attempts_max == Some(0) {
            problem("attempts_max", "0 must be a whole number from 1 to 1000".to_owned());
        }
        if !self.topic_prefix.is_empty() && !topic_is_legal(&self.topic_prefix) {
            let prefix = shortened(&self.topic_prefix);
            problem("topic_prefix", format!("{prefix:?} must be of a-z A-Z 0-9 . _ -, not starting with __"));
        }
        // A literal name is known to be too long; what a pattern matches is looked at message by message.
        for topic in self.topics.iter().filter_map(TopicPattern::only) {
            if !topic_is_legal(&format!("{}{topic}", self.topic_prefix)) {
                let topic = shortened(&format!("{}{topic}", self.topic_prefix));
                problem(
                    "topics",
                    format!("{topic:?}, with its prefix, is no topic that the relay publishes to"),
                );
            }
        }
        if let Some(dead_letter) = &self.dead_letter {
            if !topic_is_legal(dead_letter) {
                let topic = shortened(dead_letter);
                problem(
                    "dead_letter",
                    format!("{topic:?} must be 1 to 249 of a-z A-Z 0-9 . _ -, not starting with __"),
                );
            }
            if self.feeds_itself(dead_letter) {
                problem(
                    "dead_letter",
                    format!("{dead_letter:?} is a topic of the same route: it would feed itself"),
                );
            }
        }
        self.alias_problems(problem);
    }

    fn feeds_itself(&self, dead_letter: &str) -> bool {
        let intents_topic = dead_letter.strip_prefix(&self.topic_prefix);
        // A pattern may well cover it (`*`): nothing is copied there that was bound for there (see `dead_letter_of`).
        self.topics.iter().filter_map(TopicPattern::only).any(|topic| Some(topic) == intents_topic)
    }

    /// Where the copy of a message that was bound for this topic goes, if it is parked. A dead-letter topic gets none of its own.
    #[must_use]
    pub fn dead_letter_of(&self, destination: &str) -> Option<&str> {
        self.dead_letter.as_deref().filter(|dead_letter| *dead_letter != destination)
    }

    fn alias_problems(&self, problem: &mut impl FnMut(&'static str, String)) {
        for (nth, (header, alias)) in self.header_aliases.iter().enumerate() {
            let shown = shortened(alias);
            if !STAMPED_HEADERS.contains(header) {
                let names = STAMPED_HEADERS.join(", ");
                problem("header_aliases", format!("{header:?} is no header of the relay: one of {names}"));
            }
            if !own_header_is_legal(alias) {
                problem(
                    "header_aliases",
                    format!("{shown:?} is empty, longer than 256 bytes, or reserved for the relay"),
                );
            }
            if self.header_aliases[..nth].iter().any(|(_, earlier)| earlier == alias) {
                problem("header_aliases", format!("{shown:?} is the alias of two headers"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> TopicPattern {
        text.parse::<TopicPattern>().unwrap()
    }

    #[test]
    fn a_pattern_is_said_in_sql_with_its_underscores_for_themselves() {
        assert_eq!(pattern("a_b.*").like(), "a\\_b.%");
        for wrong in ["", "a b", "a?", "[a]", "a%", "a\\", "ä"] {
            assert!(wrong.parse::<TopicPattern>().is_err(), "{wrong}");
        }
    }

    fn route(topics: &[&str]) -> Route {
        Route { topics: topics.iter().map(|topic| pattern(topic)).collect(), ..Route::default() }
    }

    fn said(routes: Vec<Route>) -> Vec<String> {
        let problems = Routes::new(vec![pattern("*")], routes).problems();
        problems
            .into_iter()
            .map(|problem| format!("{}.{}: {}", problem.route, problem.setting, problem.said))
            .collect()
    }

    /// Every text of at most five characters of two letters.
    fn short_texts() -> Vec<String> {
        let mut texts = vec![String::new()];
        for from in 0..31 {
            for letter in ['a', 'b'] {
                texts.push(format!("{}{letter}", texts[from]));
            }
        }
        texts
    }

    /// What a pattern means, as it is defined.
    fn matches_by_definition(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|taken| matches_by_definition(rest, &text[taken..])),
            Some((byte, rest)) => text
                .split_first()
                .is_some_and(|(first, text)| first == byte && matches_by_definition(rest, text)),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_its_definition_says(text in "[ab*]{1,5}") {
            for topic in short_texts() {
                let expected = matches_by_definition(text.as_bytes(), topic.as_bytes());
                prop_assert_eq!(pattern(&text).matches(&topic), expected, "{:?} {:?}", text, topic);
            }
        }

        /// Two patterns of at most `n` characters that meet have a name in common that is no longer than both together; with at
        /// most five letters between them, that is five.
        #[test]
        fn patterns_meet_if_and_only_if_a_name_is_matched_by_both(one in "[ab*]{1,5}", two in "[ab*]{1,5}") {
            let letters = |text: &str| text.bytes().filter(|byte| *byte != b'*').count();
            prop_assume!(letters(&one) + letters(&two) <= 5);
            let (one, two) = (pattern(&one), pattern(&two));
            let common = short_texts().into_iter().any(|name| one.matches(&name) && two.matches(&name));
            prop_assert_eq!(one.meets(&two), common, "{:?} {:?}", one, two);
            prop_assert_eq!(two.meets(&one), common);
        }
    }

    #[test]
    fn what_no_topic_can_be_called_is_no_pattern() {
        for legal in ["*", "orders", "orders.*", "*.v1", "a*b_c-9"] {
            assert_eq!(pattern(legal).as_str(), legal);
        }
        for illegal in ["", "orders/*", "orders.?", "größe", " orders", &"x".repeat(250)] {
            assert!(illegal.parse::<TopicPattern>().is_err(), "{illegal}");
        }
    }

    #[test]
    fn routes_that_overlap_are_refused_with_both_named() {
        let refused =
            said(vec![route(&["billing", "orders.*"]), route(&["shipping"]), route(&["*.eu", "shipping"])]);
        let starts = [
            "1.topics: \"orders.*\" of route 1 and \"*.eu\" of route 3",
            "2.topics: \"shipping\" of route 2 and \"shipping\" of route 3",
        ];
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(refused.iter().zip(starts).all(|(said, start)| said.starts_with(start)), "{refused:?}");
        assert_eq!(said(vec![route(&["orders.*", "orders.eu"]), route(&["orders"])]), [""; 0]);
    }

    #[test]
    fn everything_that_is_wrong_with_a_route_is_said_at_once() {
        let wrong = Route {
            dead_letter: Some("__dead".to_owned()),
            attempts_max: Some(0),
            topic_prefix: "a/b".to_owned(),
            header_aliases: vec![
                ("id", "traceparent".to_owned()),
                ("correlation-id", "outbox-x".to_owned()),
                ("id", String::new()),
                ("outbox-time", "x".to_owned()),
                ("causation-id", "x".to_owned()),
            ],
            ..route(&[])
        };
        let said = said(vec![wrong]);
        let starts = [
            "1.topics: is empty",
            "1.attempts_max: 0 must",
            "1.topic_prefix: \"a/b\"",
            "1.dead_letter: \"__dead\"",
            "1.header_aliases: \"traceparent\" is empty, longer",
            "1.header_aliases: \"outbox-x\" is empty, longer",
            "1.header_aliases: \"\" is empty, longer",
            "1.header_aliases: \"x\" is the alias of two",
        ];
        assert_eq!(said.len(), starts.len(), "{said:#?}");
        for (said, start) in said.iter().zip(starts) {
            assert!(said.starts_with(start), "{said} {start}");
        }
    }

    #[test]
    fn a_dead_letter_topic_that_is_named_by_its_own_route_is_refused() {
        let feeds = |topics: &[&str], prefix: &str, dead_letter: &str| {
            let route = Route {
                topic_prefix: prefix.to_owned(),
                dead_letter: Some(dead_letter.to_owned()),
                ..route(topics)
            };
            !said(vec![route]).is_empty()
        };
        assert!(feeds(&["orders", "dead"], "", "dead"));
        assert!(feeds(&["dead"], "staging.", "staging.dead"));
        assert!(!feeds(&["dead"], "staging.", "dead"));
        assert!(!feeds(&["*"], "", "dead"), "the catch-all has a dead-letter topic");
    }

    #[test]
    fn a_dead_letter_topic_gets_no_copies_of_its_own_messages() {
        let route = Route { dead_letter: Some("dead".to_owned()), ..route(&["*"]) };
        assert_eq!(route.dead_letter_of("orders"), Some("dead"));
        assert_eq!(route.dead_letter_of("dead"), None);
    }

    #[test]
    fn a_message_goes_where_its_route_says_or_is_refused() {
        let staged = Route { topic_prefix: "staging.".to_owned(), ..route(&["orders.*", "__*"]) };
        let routes = Routes::new(vec![pattern("orders.*"), pattern("b*")], vec![staged]);
        let destination = |topic| routes.destination(topic);
        assert_eq!(&*destination("orders.eu").topic, "staging.orders.eu");
        assert_eq!(destination("orders.eu").refusal, None);
        assert_eq!(&*destination("billing").topic, "billing");
        assert_eq!(*destination("billing").route, Route::default());
        let refused = |topic| destination(topic).refusal.unwrap();
        assert_eq!(refused("payments"), Refusal::TopicNotAllowed { topic: "payments".to_owned() });
        assert!(matches!(refused("b/x"), Refusal::IllegalTopic { .. }));
        assert!(
            matches!(refused("__consumer_offsets"), Refusal::TopicNotAllowed { .. }),
            "the prefix makes it legal"
        );
        assert!(matches!(
            Routes::default().destination("__consumer_offsets").refusal,
            Some(Refusal::IllegalTopic { .. })
        ));
    }
}
