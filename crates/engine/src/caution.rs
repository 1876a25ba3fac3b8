//! A message that ends the process that publishes it (out of memory, an abort in the client library) must not end every process
//! that comes after it.
//!
//! Nobody can say afterwards what a process died of, so attempts are counted: one is *started* when the database says so, and
//! *finished* when the process lives to say that, too. Doing it for every message would cost two writes each; so a run does it
//! only while it is cautious: after [`UNSETTLED_MAX`] terms in a row that ended without a word, or with an attempt that was
//! started and not finished. A cautious run hands messages to the client one at a time, nothing else in flight, and each is
//! noted beforehand by a settle (the cursor row has one place for it). So a process that dies names the message it died of, and one
//! that was named [`TRIALS_MAX`] times is parked when it comes again. A message that failed before is published alone in any
//! case, and noted too: it may be the one that an operator has retried.
//!
//! An outage is no poison: a process that is alive [`ALIVE_FOR`] after it handed the message over was not ended by it, and takes the
//! note back. So does whoever finds the note of an attempt that it made itself.
//!
//! This is plain state that the pipeline owns; it knows neither ports nor clock.

use std::time::Duration;

use outboxd_core::Seq;
use tokio::time::Instant;

use crate::outbox::{Start, Trial};

/// After so many terms in a row that ended with neither a settle nor an orderly end, the next one is cautious.
pub(crate) const UNSETTLED_MAX: u32 = 3;

/// A message is parked when so many attempts of it were started and not finished.
pub(crate) const TRIALS_MAX: u32 = 2;

/// A process that lives so long after it handed a message over does not die of it.
pub(crate) const ALIVE_FOR: Duration = Duration::from_secs(2);

/// How the message at the front of the feed is to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As any other.
    Free,
    /// With nothing else in flight, once the attempt is noted. `noted`: it is.
    Alone { noted: bool },
    /// Not at all: so many attempts have ended the process.
    Never(u32),
}

#[derive(Debug)]
pub(crate) struct Caution {
    cautious: bool,
    /// Attempts of an earlier process that were not finished, of a message that has not come up in this run.
    pending: Option<Trial>,
    pending_is_held: bool,
    /// The attempt of this run.
    trial: Option<Trial>,
    handed_over_at: Option<Instant>,
    /// What the database says, or will say when the settle under way is written.
    stored: Option<Trial>,
    /// Messages that went well in this run.
    well: usize,
    /// So many are enough to believe that the rest goes well too.
    well_enough: usize,
    /// Whether the held messages that were due at the beginning have gone.
    held_is_quiet: bool,
}

impl Caution {
    /// `own`: the message that this process itself has tried last.
    pub(crate) fn new(start: &Start, own: Option<Seq>, well_enough: usize) -> Self {
        let pending = start.trial.filter(|trial| Some(trial.seq) != own);
        Self {
            cautious: start.terms_unsettled >= UNSETTLED_MAX || pending.is_some(),
            pending,
            pending_is_held: start.trial_is_held,
            trial: None,
            handed_over_at: None,
            stored: start.trial,
            well: 0,
            well_enough: well_enough.max(1),
            held_is_quiet: false,
        }
    }

    pub(crate) fn is_cautious(&self) -> bool {
        self.cautious
    }

    /// How to publish a message, released with so many attempts charged or read from the outbox. One that goes alone is noted with
    /// the next settle, which is due at once then.
    pub(crate) fn pace(&mut self, seq: Seq, released: Option<u32>) -> Pace {
        let before = self.pending.filter(|pending| pending.seq == seq).map(|pending| pending.trials);
        if let Some(trials) = before.filter(|trials| *trials >= TRIALS_MAX) {
            return Pace::Never(trials);
        }
        if let Some(trial) = self.trial.filter(|trial| trial.seq == seq) {
            return Pace::Alone { noted: self.stored == Some(trial) };
        }
        if !self.cautious && before.is_none() && released.unwrap_or(0) == 0 {
            return Pace::Free;
        }
        if before.is_some() {
            self.pending = None;
        }
        self.trial = Some(Trial { seq, trials: before.unwrap_or(0) + 1 });
        self.handed_over_at = None;
        Pace::Alone { noted: false }
    }

    /// The message whose attempt is noted is with the client.
    pub(crate) fn handed_over(&mut self, now: Instant) {
        if self.trial.is_some() {
            self.handed_over_at = Some(now);
        }
    }

    /// A message got its verdict.
    pub(crate) fn decided(&mut self, seq: Seq) {
        if self.trial.is_some_and(|trial| trial.seq == seq) {
            self.finished();
        }
    }

    /// A message was parked because of what earlier processes noted.
    pub(crate) fn parked(&mut self, seq: Seq) {
        self.pending = self.pending.filter(|pending| pending.seq != seq);
    }

    /// The process ends the run by itself: whatever was started is finished.
    pub(crate) fn finished(&mut self) {
        self.trial = None;
        self.handed_over_at = None;
    }

    pub(crate) fn tick(&mut self, now: Instant) {
        if self.handed_over_at.is_some_and(|at| now.saturating_duration_since(at) >= ALIVE_FOR) {
            self.finished();
        }
    }

    /// So many messages were acknowledged.
    pub(crate) fn went_well(&mut self, messages: usize) {
        self.well = self.well.saturating_add(messages);
        if self.well >= self.well_enough {
            self.end();
        }
    }

    /// Nothing that is held is due.
    pub(crate) fn held_is_quiet(&mut self) {
        self.held_is_quiet = true;
    }

    /// Everything that was committed has been dealt with.
    pub(crate) fn caught_up(&mut self) {
        if self.held_is_quiet {
            if !self.pending_is_held {
                // It was dispatched or discarded: it never comes.
                self.pending = None;
            }
            self.end();
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.cautious) {
            tracing::info!(target: "outboxd::publish", messages = self.well,
                "what was published one at a time went well; publishing at full speed");
        }
    }

    /// Whether this term counts as one that got on. Not before the held messages had their turn: one of them may end the process
    /// after newer messages were settled, each time.
    pub(crate) fn proves_term(&self) -> bool {
        self.held_is_quiet || self.well >= self.well_enough
    }

    /// The attempt that is to be noted, of this process.
    pub(crate) fn trial(&self) -> Option<Trial> {
        self.trial
    }

    /// What the database is to say: the attempt of this run, or else that of an earlier one whose message has not come up yet.
    pub(crate) fn note(&self) -> Option<Trial> {
        self.trial.or(self.pending)
    }

    /// Whether the database is to be told now, whatever else there is to settle.
    pub(crate) fn is_note_due(&self) -> bool {
        self.note() != self.stored
    }

    /// The database was told.
    pub(crate) fn noted(&mut self, note: Option<Trial>) {
        self.stored = note;
    }
}

#[cfg(test)]
mod tests {
    use outboxd_core::{Cursor, Snapshot};

    use super::*;

    const ENOUGH: usize = 200;

    fn start(terms_unsettled: u32, trial: Option<(i64, u32)>) -> Start {
        Start {
            cursor: Cursor { high: Seq(0), seen: Snapshot::none(), catch_up: None },
            held: Vec::new(),
            actions: 0,
            kafka_cluster: None,
            terms_unsettled,
            trial: trial.map(|(seq, trials)| Trial { seq: Seq(seq), trials }),
            trial_is_held: false,
        }
    }

    fn run(terms_unsettled: u32, trial: Option<(i64, u32)>) -> Caution {
        Caution::new(&start(terms_unsettled, trial), None, ENOUGH)
    }

    /// Writes what is to be noted.
    fn write(caution: &mut Caution) -> Option<Trial> {
        let note = caution.note();
        caution.noted(note);
        note
    }

    #[test]
    fn a_run_that_has_no_reason_for_caution_writes_nothing() {
        for terms in 0..UNSETTLED_MAX {
            let mut caution = run(terms, None);
            assert_eq!(caution.pace(Seq(1), None), Pace::Free);
            assert_eq!(caution.pace(Seq(1), Some(0)), Pace::Free);
            assert!(!caution.is_note_due());
        }
    }

    #[test]
    fn a_message_is_parked_after_two_attempts_that_ended_the_process() {
        let mut stored = None;
        for attempt in 1..=TRIALS_MAX {
            let mut caution = run(UNSETTLED_MAX, stored);
            assert_eq!(caution.pace(Seq(7), None), Pace::Alone { noted: false });
            assert!(caution.is_note_due());
            let note = write(&mut caution).unwrap();
            assert_eq!(note, Trial { seq: Seq(7), trials: attempt });
            assert_eq!(caution.pace(Seq(7), None), Pace::Alone { noted: true });
            stored = Some((7, note.trials));
        }
        let mut caution = run(0, stored);
        assert_eq!(caution.pace(Seq(7), None), Pace::Never(TRIALS_MAX));
        caution.parked(Seq(7));
        assert_eq!(write(&mut caution), None);
    }

    #[test]
    fn what_an_earlier_process_noted_is_kept_while_other_messages_are_tried() {
        let mut caution = run(0, Some((7, 1)));
        assert_eq!(caution.pace(Seq(3), None), Pace::Alone { noted: false });
        assert_eq!(write(&mut caution), Some(Trial { seq: Seq(3), trials: 1 }));
        caution.decided(Seq(3));
        assert_eq!(write(&mut caution), Some(Trial { seq: Seq(7), trials: 1 }), "it has not come up yet");
        assert_eq!(caution.pace(Seq(7), None), Pace::Alone { noted: false });
        assert_eq!(write(&mut caution), Some(Trial { seq: Seq(7), trials: 2 }));
        caution.decided(Seq(7));
        assert_eq!(write(&mut caution), None);
    }

    #[test]
    fn a_process_that_lives_on_is_not_ended_by_what_it_handed_over() {
        let mut caution = run(UNSETTLED_MAX, None);
        caution.pace(Seq(7), None);
        write(&mut caution);
        let now = Instant::now();
        caution.handed_over(now);
        caution.tick(now + ALIVE_FOR / 2);
        assert!(!caution.is_note_due());
        caution.tick(now + ALIVE_FOR);
        assert_eq!((caution.is_note_due(), caution.note()), (true, None));
        // Nor by what it finds noted of its own after its term was lost.
        let mut next = Caution::new(&start(0, Some((7, 2))), Some(Seq(7)), ENOUGH);
        assert!(!next.is_cautious());
        assert_eq!((next.is_note_due(), next.note()), (true, None));
        assert_eq!(next.pace(Seq(7), None), Pace::Free);
    }

    #[test]
    fn caution_ends_when_enough_went_well_or_everything_has_had_its_turn() {
        let mut caution = run(UNSETTLED_MAX, None);
        caution.went_well(ENOUGH - 1);
        assert!(caution.is_cautious() && !caution.proves_term());
        caution.went_well(1);
        assert!(!caution.is_cautious() && caution.proves_term());

        let mut caution = run(UNSETTLED_MAX, Some((7, 1)));
        caution.caught_up();
        assert!(caution.is_cautious(), "held messages have not had their turn");
        caution.held_is_quiet();
        caution.caught_up();
        assert!(!caution.is_cautious());
        assert_eq!(caution.note(), None, "a message that is gone is forgotten");
    }

    #[test]
    fn a_held_message_is_remembered_until_it_comes_up_and_goes_alone_then() {
        let held = Start { trial_is_held: true, ..start(0, Some((7, 1))) };
        let mut caution = Caution::new(&held, None, ENOUGH);
        caution.held_is_quiet();
        caution.caught_up();
        assert_eq!(caution.pace(Seq(9), None), Pace::Free);
        assert_eq!(caution.pace(Seq(7), Some(0)), Pace::Alone { noted: false });
        assert_eq!(caution.note(), Some(Trial { seq: Seq(7), trials: 2 }));
        // One that has failed before is noted whatever came before.
        let mut caution = run(0, None);
        assert_eq!(caution.pace(Seq(7), Some(1)), Pace::Alone { noted: false });
    }
}
