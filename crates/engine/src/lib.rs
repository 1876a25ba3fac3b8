//! The relay's loop and its ports.
//!
//! The engine decides *when* things happen and in which order; what they mean is `outboxd-core`, and how they are done is
//! the adapters' business. It knows neither SQL nor librdkafka. [`Relay`] is generic over the two ports [`Outbox`] and
//! [`Publisher`]; [`Operate`] is what operators ask of an outbox and is no part of the loop; [`Observe`] is told what
//! happened, so that metrics and crash tests need no place in the loop.

pub mod outbox;

pub mod upkeep;

pub mod publisher;

pub mod operate;

pub mod rebase;

pub mod replays;

pub mod receipts;

pub mod verify;

pub mod canary;

pub mod trace;

pub mod observe;

pub mod attempt;

pub mod config;

pub mod relay;

mod lead;

mod pipeline;

mod wake;

mod read;

mod topics;

mod cluster;

mod publish;

mod classify;

mod dead_letter;

mod window;

mod settle;

mod held;

mod caution;

mod release;

mod replay;

mod purge;

mod sweep;

mod drain;

pub use attempt::{Answer, Attempt, Follow};
pub use canary::Canary;
pub use config::RelayConfig;
pub use observe::{Event, Observe, Outcome, Side};
pub use operate::{
    AuditFilter, AuditLine, AuditedAction, BulkAction, Finding, HeldEdit, HeldFilter, HeldId, HeldIdError,
    HeldMatch, HeldMessage, HeldSpan, HeldStep, HoldFailure, LeaderStatus, Operate, OperateError,
    OutboxStatus, ScheduledFilter, ScheduledMessage, Severity,
};
pub use outbox::{
    Due, DurabilityMark, HeldChange, HeldCount, HeldSignal, Outbox, OutboxError, PageLimit, ReadPage,
    Release, ReleaseQuery, Settlement, Start, Term, Trial, chain,
};
pub use publisher::{EnqueueError, Publisher, PublisherStats, Report, Token, TopicState};
pub use rebase::{Rebase, RebaseFigures, RebasePlan};
pub use receipts::{Landing, ReceiptRow, Receipts, SPANS_MAX, spans};
pub use relay::{Relay, RelayError};
pub use replays::{
    OperateReplays, ReplayChange, ReplayChunk, ReplayError, ReplayFilter, ReplayFound, ReplayInfo,
    ReplayProgress, ReplayQuery, ReplayRequest, ReplaySample, ReplaySpan, ReplayState, ReplayStop,
    ReplayTask, ReplayTurn, Replays,
};
pub use upkeep::{Backlog, PurgeLimit, Purged, RewindReason, Rewound, Stranded, Swept, Upkeep};
pub use verify::{History, Rewind, TermSpan, Verify, Wanted};
