//! The log: text on a terminal, JSON otherwise, and never in the relay's way.
//!
//! Lines go through a bounded queue to a thread of their own. When standard output is blocked (a full pipe, a stuck
//! collector) the queue fills, and further lines are dropped and counted: `outboxd_log_lines_dropped_total`. Nobody waits
//! for a log line. What the log says about messages is the stages' business; payloads never get here.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, LogSection};

/// Lines that may wait for standard output; further ones are dropped.
const LINES_WAITING_MAX: usize = 2_048;

/// How long the end of the process waits for a standard output that may be blocked.
const FLUSH_AT_MOST: Duration = Duration::from_millis(500);

/// How many log lines were dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct DroppedLines(Arc<AtomicU64>);

impl DroppedLines {
    /// Lines dropped since the start.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The relay's log. Dropping it writes what is queued, for a moment at most.
#[derive(Debug)]
pub(crate) struct Telemetry {
    queue: Queue,
}

impl Telemetry {
    /// Starts the log of the relay, on standard output.
    ///
    /// # Errors
    /// If the thread cannot be started or a log is running already.
    pub(crate) fn start(log: &LogSection) -> anyhow::Result<Self> {
        let queue = Queue::start(io::stdout())?;
        let terminal = io::stdout().is_terminal();
        let filter = EnvFilter::builder().parse(&log.filter).context("read log.filter")?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue.clone());
        match log.format {
            LogFormat::Text => builder.with_ansi(terminal && log.color).finish().try_init(),
            LogFormat::Auto if terminal => builder.with_ansi(log.color).finish().try_init(),
            LogFormat::Json | LogFormat::Auto => {
                builder.json().flatten_event(true).with_current_span(false).finish().try_init()
            }
        }
        .context("start the log")?;
        Ok(Self { queue })
    }

    /// Counts dropped lines.
    pub(crate) fn dropped(&self) -> DroppedLines {
        self.queue.dropped.clone()
    }

    /// Writes what is queued, for a moment at most.
    pub(crate) fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.queue.out.try_send(Line::Flush(done)).is_ok() {
            // A blocked standard output must not keep the process from ending.
            let _in_time = written.recv_timeout(FLUSH_AT_MOST);
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The log of a one-shot command: warnings on standard error, so that standard output is the answer alone.
///
/// # Errors
/// If a log is running already.
pub(crate) fn start_for_command(log: &LogSection) -> anyhow::Result<()> {
    let filter = if log.filter == "info" { "warn" } else { &log.filter };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse(filter).context("read log.filter")?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && log.color)
        .finish()
        .try_init()
        .context("start the log")
}

#[derive(Debug)]
enum Line {
    Text(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The bounded queue between whoever logs and the thread that writes.
#[derive(Clone, Debug)]
struct Queue {
    out: SyncSender<Line>,
    dropped: DroppedLines,
}

impl Queue {
    fn start(target: impl Write + Send + 'static) -> io::Result<Self> {
        let (out, lines) = sync_channel(LINES_WAITING_MAX);
        // Ends with its last sender; until then it holds nothing that must be closed in order.
        std::thread::Builder::new()
            .name("outboxd-log".to_owned())
            .spawn(move || write_lines(&lines, target))?;
        Ok(Self { out, dropped: DroppedLines::default() })
    }
}

fn write_lines(lines: &Receiver<Line>, target: impl Write) {
    let mut target = io::BufWriter::new(target);
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        while let Some(line) = next {
            match line {
                // A closed standard output is nobody's reason to stop.
                Line::Text(text) => target.write_all(&text).unwrap_or(()),
                Line::Flush(done) => {
                    target.flush().unwrap_or(());
                    done.send(()).unwrap_or(());
                }
            }
            next = lines.try_recv().ok();
        }
        target.flush().unwrap_or(());
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { line: Vec::with_capacity(256), queue: self.clone() }
    }
}

/// Gathers one line and queues it when it is complete.
struct LineWriter {
    line: Vec<u8>,
    queue: Queue,
}

impl Write for LineWriter {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        match self.queue.out.try_send(Line::Text(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.queue.dropped.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;

    use super::*;

    /// A standard output that blocks until it is let go.
    struct Blocked {
        let_go: Receiver<()>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Blocked {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.let_go.recv().unwrap_or(());
            self.written.send(text.to_vec()).unwrap_or(());
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_standard_output_drops_lines_and_never_blocks_the_one_who_logs() {
        let (go, let_go) = std::sync::mpsc::channel();
        let (written, output) = std::sync::mpsc::channel();
        let queue = Queue::start(Blocked { let_go, written }).unwrap();
        let lines = u64::try_from(LINES_WAITING_MAX * 4).unwrap();
        for number in 0..lines {
            writeln!(queue.make_writer(), "line {number}").unwrap();
        }
        let dropped = queue.dropped.get();
        assert!(dropped > 0 && dropped < lines, "{dropped} of {lines} dropped");
        drop(go);
        drop(queue);
        let text = String::from_utf8(output.iter().flatten().collect()).unwrap();
        assert!(text.starts_with("line 0\n"));
        assert_eq!(u64::try_from(text.lines().count()).unwrap(), lines - dropped);
    }
}
