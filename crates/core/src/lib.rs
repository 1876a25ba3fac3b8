//! The rules of the relay: what a message is, where the cursor may stand, what an answer means.
//!
//! This crate does no IO, is not async and reads no clock; time and randomness are passed in. It knows neither
//! PostgreSQL nor Kafka: a [`Snapshot`] is opaque text and a [`Fault`] is what an adapter saw, in our own words.

pub mod message;

pub mod cursor;

pub mod record;

pub mod routes;

pub mod verdict;

pub mod held;

pub mod catalogue;

pub mod receipts;

pub mod sweep;

pub mod verify;

pub mod backoff;

pub use backoff::Backoff;
pub use catalogue::Explanation;
pub use cursor::{CatchUp, Cursor, Page, PageFrame, Snapshot};
pub use held::{Hold, HoldReason, HoldState, KeyHash, Scheduled};
pub use message::{Message, Seq};
pub use receipts::{Receipt, ReceiptEntry};
pub use record::{Record, Refusal, TopicInfo, replayed, route};
pub use routes::{Destination, OnRefused, Route, RouteProblem, Routes, TopicPattern, TopicPatternError};
pub use verdict::{DeliveryError, Fault, Verdict, classify};
