//! What can go wrong in a command, and the exit code that says so.

use std::process::ExitCode;

/// Each variant has its own exit code, listed by `coracle --help` and in the README.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// 1: the operation was tried and failed.
    #[error("{0}")]
    Failed(String),
    /// 2: the command line or the configuration is wrong; nothing was tried.
    #[error("{0}")]
    Usage(String),
    /// 3.
    #[error("{0}")]
    NotFound(String),
    /// 4.
    #[error("{0}")]
    Unauthorized(String),
    /// 5: the name is taken, or the thing is in the wrong state.
    #[error("{0}")]
    Conflict(String),
    /// 6: still not done when the time given was over.
    #[error("{0}")]
    TimedOut(String),
    /// 7: `invoke --fail` and the function answered 400 or above.
    #[error("the function answered {0}")]
    FunctionFailed(u16),
    /// 8: no server answered.
    #[error("{0}")]
    Unreachable(String),
}

impl CliError {
    pub(crate) fn failed(action: &str, error: impl std::error::Error) -> Self {
        Self::Failed(format!("{action}: {}", chain(&error)))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Unauthorized(_) => 4,
            Self::Conflict(_) => 5,
            Self::TimedOut(_) => 6,
            Self::FunctionFailed(_) => 7,
            Self::Unreachable(_) => 8,
        })
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
