//! What happened to one business transaction: from the row to the effect, and every copy after it.

use uuid::Uuid;

use super::books::{Receipt, Row};
use super::consumer::Remembered;

/// A line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    /// When, by the clock of whoever wrote it down.
    pub(crate) at: String,
    /// What.
    pub(crate) what: String,
}

/// The moments of one message, in the order in which they happen: written, parked and retried, published, settled, handled,
/// repeated.
pub(crate) fn of_message(row: &Row, receipt: Option<&Receipt>, remembered: &[Remembered]) -> Vec<Moment> {
    let moment = |at: &str, what: String| Moment { at: at.to_owned(), what };
    let mut moments = vec![moment(
        &row.created_at,
        format!("row         seq {} in the transaction of its order, for topic {}", row.seq, row.topic),
    )];
    for action in &row.actions {
        let (kind, reason) = (&action.kind, &action.reason_held);
        moments.push(moment(
            &action.at,
            format!("operator    parked ({reason}); {kind} by {}: {}", action.who, action.why),
        ));
    }
    let own = |of: Uuid| move |copy: &&Remembered| copy.delivery.id == of;
    for copy in remembered.iter().filter(own(row.id)) {
        let place = &copy.delivery.place;
        moments.push(moment(
            &copy.at,
            if copy.first {
                format!("effect      consumer read {place}, claimed the id, acted")
            } else {
                format!("duplicate   consumer read {place}: id claimed before, nothing done")
            },
        ));
    }
    moments.push(match receipt {
        Some(receipt) => {
            moment(&receipt.settled_at, format!("receipt     {} settled by {}", receipt.place, receipt.relay))
        }
        None => moment("", "no receipt".to_owned()),
    });
    // Stable: what happened in the same millisecond stays in the order above.
    moments.sort_by(|one, other| one.at.cmp(&other.at));
    for moment in &mut moments {
        moment.at = clock(&moment.at);
    }
    moments
}

/// The time of day of an RFC 3339 time in UTC: a demo does not last a day.
fn clock(at: &str) -> String {
    at.split_once('T').map_or(at, |(_, time)| time.trim_end_matches('Z')).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::tally::{Delivery, Place};
    use super::*;

    #[test]
    fn a_repeated_message_shows_its_row_receipt_effect_and_duplicate() {
        let id = Uuid::from_u128(1);
        let row = Row {
            seq: 7,
            id,
            topic: "orders".into(),
            created_at: "2031-02-03T23:59:59.100Z".into(),
            actions: Vec::new(),
        };
        let place = |offset| Place { topic: "orders".into(), partition: 2, offset };
        let copy = |offset, first, at: &str| Remembered {
            delivery: Delivery { place: place(offset), id },
            first,
            at: at.into(),
        };
        let receipt = Receipt {
            place: place(9),
            relay: "demo-2".into(),
            settled_at: "2031-02-03T23:59:59.900Z".into(),
        };
        let copies = [copy(4, true, "2031-02-03T23:59:59.200Z"), copy(9, false, "2031-02-03T23:59:59.800Z")];
        let told: Vec<String> = of_message(&row, Some(&receipt), &copies)
            .into_iter()
            .map(|moment| format!("{} {}", moment.at, moment.what))
            .collect();
        assert_eq!(
            told,
            [
                "23:59:59.100 row         seq 7 in the transaction of its order, for topic orders",
                "23:59:59.200 effect      consumer read orders[2]@4, claimed the id, acted",
                "23:59:59.800 duplicate   consumer read orders[2]@9: id claimed before, nothing done",
                "23:59:59.900 receipt     orders[2]@9 settled by demo-2",
            ]
        );
    }
}
