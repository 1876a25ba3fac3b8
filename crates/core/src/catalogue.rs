//! What every reason for holding a message means to whoever has to decide: what has happened, why the relay stopped there, and what
//! to do. The one place where that is written: `held show` prints it, and docs/held.md is checked against it.

use serde::Serialize;

use crate::held::HoldReason;

/// A reason, explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What has happened.
    pub what: &'static str,
    /// Why the relay does not simply go on.
    pub why: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

impl HoldReason {
    /// Explains the reason.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "a catalogue has an entry for each reason")]
    pub fn explained(self) -> Explanation {
        let (what, why, remedy) = match self {
            Self::TopicUnknown => (
                "No broker knows the topic.",
                "The relay never creates a topic: a typing error would become one. The messages of this topic wait, in their order \
                 and without an attempt charged; all other topics flow.",
                "Create the topic; its messages go by themselves within seconds. If the name is wrong, mend it with \
                 `outboxd held edit --topic`, and in the application.",
            ),
            Self::TopicUnauthorized => (
                "The broker does not let the relay write to the topic.",
                "Trying on would be refused for every message. The messages of this topic wait, in their order and without an \
                 attempt charged; all other topics flow.",
                "Grant WRITE and DESCRIBE on the topic to the relay's principal; its messages go by themselves within seconds.",
            ),
            Self::Behind => (
                "An earlier message of the same key is held.",
                "Publishing this one first would break the order of its key.",
                "Deal with the message that it waits behind: `outboxd held show` names it. This one follows by itself.",
            ),
            Self::UnknownError => (
                "Kafka answered with an error that this version does not know.",
                "It may pass, so the message is tried again with growing pauses, and its key waits for it. After \
                 relay.attempts_max attempts it is parked.",
                "Look at the errors and at the broker's log. Wait, or retry it at once when the cause is gone.",
            ),
            Self::TooLarge => (
                "The record is larger than the topic takes.",
                "It would be refused each time, and it would fail every message that travels in its batch.",
                "Raise max.message.bytes of the topic (and the consumers' fetch limits) and retry, or store the large part \
                 elsewhere and discard this message. `outboxd held show` has its size.",
            ),
            Self::InvalidRecord => (
                "The broker refused the record for its own sake, with nothing else in its batch.",
                "It would be refused each time: a policy or an interceptor of the broker does not take it.",
                "Read the broker's log at the time of the last error. Retry when the policy was corrected, edit what it does not take, or discard.",
            ),
            Self::NoSuchPartition => (
                "The intent names a partition that the topic does not have.",
                "No other partition is what its writer asked for.",
                "Add partitions to the topic and retry, or let the key decide: `outboxd held edit --no-partition --retry`.",
            ),
            Self::BadHeader => (
                "A header's name is empty, longer than 256 bytes, or one that the relay stamps itself.",
                "A consumer could not tell it from the relay's own header.",
                "Take it away or rename it with `outboxd held edit --remove-header .. --header ..`, and correct the application.",
            ),
            Self::IllegalTopic => (
                "The topic's name is not one that Kafka takes, or it belongs to Kafka itself (`__..`).",
                "No such topic can exist, and nobody may write to an internal one by way of an intent.",
                "Name the right topic with `outboxd held edit --topic`, and correct the application; or discard.",
            ),
            Self::TopicNotAllowed => (
                "The topic is not among those that the relay's configuration lets intents name.",
                "Whoever may write an intent must not be able to write to any topic of the cluster.",
                "Add the topic to relay.topics_allowed, restart the relay and retry; or name the right topic with \
                 `outboxd held edit --topic`, or discard.",
            ),
            Self::TombstoneWithoutKey => (
                "The message has neither payload nor key.",
                "A tombstone deletes the key that it names; without one it means nothing, and a compacted topic refuses it.",
                "Give it a payload with `outboxd held edit --payload-file .. --yes-change-payload`, or discard it, and correct the application.",
            ),
            Self::RefusedByClient => (
                "The client library did not take the record.",
                "It would refuse it each time; nothing was sent.",
                "The last error has the library's name for it. Usually a limit of kafka.properties: raise it, restart the relay, retry.",
            ),
            Self::AttemptsExhausted => (
                "Every attempt failed with an error that this version does not know, the last one with nothing else in flight.",
                "It is this message's own error then, and trying for ever would keep its key waiting in silence.",
                "Look at the errors below and at the broker's log at their times. Retry when the cause is gone; otherwise edit or discard.",
            ),
            Self::Scheduled => (
                "The message was scheduled (deliver_after), and its time has come.",
                "It takes its place in the order of its key now, like any message that was held.",
                "Nothing: it goes by itself within a second, or waits behind an earlier held message of its key.",
            ),
            Self::Stranded => (
                "The cursor had passed the message and nobody had delivered it: the sweep found it.",
                "No relay skips a message. Somebody changed the outbox's tables, or a restored database was not rebased.",
                "Nothing for the message: it is published now. Find out who changed outbox.message or outbox.cursor by hand, and read docs/restore.md.",
            ),
            Self::CrashesRelay => (
                "The relay's process ended without a word each time it published this message, with nothing else in flight.",
                "Every relay that came after would have ended in the same way, and nothing behind the message would ever have been published.",
                "Find out what ended the process (out of memory, a crash in the client library) from its supervisor's log. Retry \
                 when the cause is gone: more memory, another version; otherwise edit or discard. It is tried alone, and parked again if it ends two more processes.",
            ),
        };
        Explanation { what, why, remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/held.md");

    fn section(reason: HoldReason) -> String {
        let Explanation { what, why, remedy } = reason.explained();
        format!(
            "### `{}`\n\n{what}\n\nWhy the relay stopped: {why}\n\nWhat to do: {remedy}\n",
            reason.as_str()
        )
    }

    #[test]
    fn the_page_about_held_messages_has_a_section_for_every_reason_with_the_text_of_the_catalogue() {
        let missing: String =
            HoldReason::ALL.into_iter().map(section).filter(|section| !PAGE.contains(section)).collect();
        assert!(missing.is_empty(), "docs/held.md lacks, or has otherwise:\n\n{missing}");
        let sections = PAGE.lines().filter(|line| line.starts_with("### `")).count();
        assert_eq!(sections, HoldReason::ALL.len(), "docs/held.md explains a reason that is none");
    }
}
