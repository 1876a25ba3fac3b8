//! How a command fails: what is said and with which exit code.

use std::fmt;
use std::process::ExitCode;

use outboxd_engine::{OperateError, OutboxError, RelayError, ReplayError};

use crate::config::Problems;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    kind: Kind,
    cause: anyhow::Error,
}

/// Exit codes, by the names of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Usage = 64,
    Data = 65,
    Unavailable = 69,
    Software = 70,
    Config = 78,
}

impl Failure {
    /// Something was asked for that cannot be.
    pub(crate) fn usage(cause: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Usage, cause: cause.into() }
    }

    /// What was looked at is not as it should be.
    pub(crate) fn found(cause: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Data, cause: cause.into() }
    }

    /// A dependency cannot be reached.
    pub(crate) fn unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Unavailable, cause: cause.into() }
    }

    /// Somebody must set something right first.
    pub(crate) fn config(cause: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Config, cause: cause.into() }
    }

    /// A bug, or a machine that does not do what every machine does.
    pub(crate) fn bug(cause: impl Into<anyhow::Error>) -> Self {
        Self { kind: Kind::Software, cause: cause.into() }
    }

    /// Says what it was about, in front of the cause.
    pub(crate) fn context(self, said: String) -> Self {
        Self { kind: self.kind, cause: self.cause.context(said) }
    }

    /// Whether something was asked for that cannot be.
    pub(crate) fn is_usage(&self) -> bool {
        self.kind == Kind::Usage
    }

    /// The exit code.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

/// The error and its causes on one line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.cause)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(cause: anyhow::Error) -> Self {
        Self::bug(cause)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::config(problems)
    }
}

impl From<OutboxError> for Failure {
    fn from(error: OutboxError) -> Self {
        match error {
            OutboxError::Unavailable { .. } => Self::unavailable(error),
            OutboxError::Refused { .. } => Self::config(error),
            OutboxError::Fenced => Self::bug(error),
        }
    }
}

impl From<OperateError> for Failure {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::Outbox(error) => error.into(),
            OperateError::NotHeld(_)
            | OperateError::NotScheduled(_)
            | OperateError::SeveralHeld { .. }
            | OperateError::Behind { .. }
            | OperateError::Edit { .. } => Self::usage(error),
        }
    }
}

impl From<ReplayError> for Failure {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Outbox(error) => error.into(),
            ReplayError::NoSuch(_) | ReplayError::Impossible { .. } => Self::usage(error),
        }
    }
}

impl From<RelayError> for Failure {
    fn from(error: RelayError) -> Self {
        match error {
            RelayError::Refused(_) => Self::config(error),
        }
    }
}
