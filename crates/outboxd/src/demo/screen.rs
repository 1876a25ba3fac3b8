//! How the story is told: progress bars and colours on a terminal, plain lines otherwise.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::relay::LogLine;
use super::stage::Now;

/// Without a terminal, progress is a line every so often.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

const NAME_WIDTH: usize = 9;

/// What fits beside the indent on a terminal of 100 columns.
const BLOCK_WIDTH: usize = 92;

/// Whose progress is shown.
const LANES: [&str; 3] = ["shop", "relay", "consumer"];

/// Where the story is told.
#[derive(Debug)]
pub(crate) struct Screen {
    bars: Option<MultiProgress>,
    colour: bool,
}

/// A way to make words stand out; nothing without colours.
#[derive(Clone, Copy, Debug)]
enum Paint {
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
    Cyan,
}

/// The progress of one stretch of the story. Taken away when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    screen: &'a Screen,
    lanes: Vec<ProgressBar>,
    from: u64,
    told_at: Instant,
}

impl Screen {
    /// On standard output.
    pub(crate) fn new(color: bool) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        Self { bars, colour: terminal && color }
    }

    fn paint(&self, paint: Paint, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match paint {
            Paint::Bold => "1",
            Paint::Dim => "2",
            Paint::Green => "32",
            Paint::Yellow => "33",
            Paint::Red => "31",
            Paint::Cyan => "36",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    fn line(&self, text: &str) {
        // A reader that went away (`| head`) does not end the story half-way: what was started is still put away.
        let write = || writeln!(std::io::stdout(), "{text}");
        let _written = match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        };
    }

    /// The first line.
    pub(crate) fn title(&self, text: &str) {
        self.line("");
        self.line(&self.paint(Paint::Bold, text));
        self.line("");
    }

    /// A name and what it is.
    pub(crate) fn fact(&self, name: &str, what: &str) {
        self.line(&format!("  {}  {what}", self.paint(Paint::Dim, &format!("{name:NAME_WIDTH$}"))));
    }

    /// The head of an act.
    pub(crate) fn act(&self, head: &str) {
        self.line("");
        self.line(&self.paint(Paint::Bold, head));
    }

    /// Something that is told.
    pub(crate) fn say(&self, text: &str) {
        self.line(&format!("  {text}"));
    }

    /// Something that is done to them.
    pub(crate) fn strike(&self, text: &str) {
        self.line(&format!("  {} {text}", self.paint(Paint::Yellow, "!")));
    }

    /// Something that held.
    pub(crate) fn held_true(&self, text: &str) {
        self.line(&format!("  {} {text}", self.paint(Paint::Green, "✔")));
    }

    /// Something that did not.
    pub(crate) fn failed(&self, text: &str) {
        self.line(&format!("  {} {text}", self.paint(Paint::Red, "✖")));
    }

    /// A command, as one would type it.
    pub(crate) fn command(&self, text: &str) {
        self.line(&format!("  {} {text}", self.paint(Paint::Cyan, "$")));
    }

    /// What the relay itself says.
    pub(crate) fn relay(&self, line: &LogLine) {
        let paint = match line.level.as_str() {
            "ERROR" => Paint::Red,
            "WARN" => Paint::Yellow,
            _other => Paint::Dim,
        };
        let level = self.paint(paint, &format!("{:5}", line.level));
        self.line(&format!("    {} {level} {}", self.paint(Paint::Dim, "relay:"), line.message));
    }

    /// Text as it is, indented, as far as it fits.
    pub(crate) fn block(&self, text: &str) {
        for line in text.lines() {
            let (shown, more) = match line.char_indices().nth(BLOCK_WIDTH) {
                Some((end, _)) => (line[..end].trim_end(), " …"),
                None => (line, ""),
            };
            self.line(&format!("    {}", self.paint(Paint::Dim, &format!("{shown}{more}"))));
        }
    }

    /// A sum of the tally.
    pub(crate) fn sum(&self, name: &str, number: u64, what: &str) {
        let number = self.paint(Paint::Bold, &format!("{:>9}", grouped(number)));
        self.line(&format!("  {name:12} {number}  {}", self.paint(Paint::Dim, what)));
    }

    /// A moment of a timeline.
    pub(crate) fn moment(&self, at: &str, what: &str) {
        self.line(&format!("    {}  {what}", self.paint(Paint::Dim, at)));
    }

    /// Shop, relay and consumer beside one another, from now on until there are so many intents.
    pub(crate) fn progress(&self, before: &Now, goal: u64) -> Progress<'_> {
        let from = before.outbox.intents;
        let lanes = match &self.bars {
            Some(bars) => LANES
                .iter()
                .map(|name| {
                    let bar = ProgressBar::new(goal.saturating_sub(from)).with_style(style(self.colour));
                    let bar = bars.add(bar);
                    bar.set_prefix(format!("{name:NAME_WIDTH$}"));
                    bar
                })
                .collect(),
            None => Vec::new(),
        };
        Progress { screen: self, lanes, from, told_at: Instant::now() }
    }
}

fn style(colour: bool) -> ProgressStyle {
    let template =
        if colour { "  {prefix:.dim}  {bar:32.cyan/blue.dim} {msg}" } else { "  {prefix}  {bar:32} {msg}" };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("█▉▊▋▌▍▎▏░")
}

impl<'a> Progress<'a> {
    /// Where it is shown.
    pub(crate) fn screen(&self) -> &'a Screen {
        self.screen
    }

    /// Shows how far everybody is.
    pub(crate) fn show(&mut self, now: &Now) {
        let outbox = &now.outbox;
        let dispatched = match outbox.held.len() {
            0 => format!("{} dispatched", grouped(outbox.dispatched)),
            held => format!("{} dispatched, {held} held", grouped(outbox.dispatched)),
        };
        let consumed = now.consumed;
        let effects =
            format!("{}, {}", counted(consumed.effects, "effect"), counted(consumed.duplicates, "duplicate"));
        let lanes = [
            (outbox.intents, format!("{} committed", counted(outbox.intents, "intent"))),
            (outbox.dispatched, dispatched),
            (now.consumed.effects, effects),
        ];
        for (bar, (position, said)) in self.lanes.iter().zip(&lanes) {
            bar.set_position(position.saturating_sub(self.from));
            bar.set_message(said.clone());
        }
        if self.lanes.is_empty() && self.told_at.elapsed() >= PLAIN_EVERY {
            self.told_at = Instant::now();
            let lanes = LANES.iter().zip(&lanes).map(|(name, (_, said))| format!("{name}: {said}"));
            self.screen.say(&lanes.collect::<Vec<_>>().join("; "));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        for bar in &self.lanes {
            bar.finish_and_clear();
            if let Some(bars) = &self.screen.bars {
                bars.remove(bar);
            }
        }
    }
}

/// A number as people read it: 12,345.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// "1 order", "2 orders".
pub(crate) fn counted(number: u64, one: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{} {one}{end}", grouped(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([counted(1, "order"), counted(2_000, "order")], ["1 order", "2,000 orders"]);
    }
}
