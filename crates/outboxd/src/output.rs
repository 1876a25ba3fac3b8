//! How answers are printed: tables for people, JSON for programs, both on standard output.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cli::Format;

/// Prints an answer: as JSON, or as what `table` makes of it.
///
/// # Errors
/// If it cannot be written. A reader that went away (`| head`) is no error.
pub(crate) fn answer<T: Serialize>(
    format: Format,
    answer: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Json => print(&serde_json::to_string_pretty(answer).context("write the answer as JSON")?),
        Format::Table => print(&table(answer)),
    }
}

/// Prints text and ends its line.
///
/// # Errors
/// As [`answer`].
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    match write!(out, "{text}{end}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("write the answer"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// A table with a head. It fits the terminal if there is one, and breaks no line otherwise.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(head);
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| one_line(&cell))));
    table.trim_fmt()
}

/// Names and values, one a line.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{name:width$}  {}\n", one_line(value))).collect()
}

/// Text that an application wrote, for a terminal: control characters are shown and not obeyed, and it forges no line.
pub(crate) fn one_line(text: &str) -> String {
    lines(text).replace('\n', "\\n")
}

/// As [`one_line`], but lines stay lines.
pub(crate) fn lines(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\n' {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// A time as it is printed everywhere: RFC 3339 in UTC, to the millisecond.
pub(crate) fn time(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let at = at.replace_millisecond(at.millisecond()).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

/// A time that may not be set.
pub(crate) fn time_or_dash(at: Option<OffsetDateTime>) -> String {
    at.map_or_else(|| "-".to_owned(), time)
}

/// A duration in the two units that matter: "1 h 4 min", "2.35 s".
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=59 => format!("{:.2} s", duration.as_secs_f64()),
        60..=3_599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..=86_399 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        86_400.. => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_application_wrote_neither_steers_the_terminal_nor_forges_a_line() {
        let hostile = "req\u{1b}[2J\u{9b}1m\r\nmessage \u{fc}";
        assert_eq!(one_line(hostile), "req\\u{1b}[2J\\u{9b}1m\\r\\nmessage \u{fc}");
        assert_eq!(lines("a\nb\u{7}"), "a\nb\\u{7}");
        assert_eq!(facts(&[("id", "a\nb".to_owned())]), "id  a\\nb\n");
        assert!(!table(["ID"], [[hostile.to_owned()]]).contains(['\u{1b}', '\u{9b}', '\r']));
    }

    #[test]
    fn times_are_utc_and_durations_have_two_units() {
        let at = OffsetDateTime::parse("2031-02-03T06:05:06.789123+02:00", &Rfc3339).unwrap();
        assert_eq!(time(at), "2031-02-03T04:05:06.789Z");
        assert_eq!(duration(Duration::from_millis(2_350)), "2.35 s");
        assert_eq!(duration(Duration::from_secs(3_840)), "1 h 4 min");
        assert_eq!(duration(Duration::from_secs(200_000)), "2 d 7 h");
    }
}
