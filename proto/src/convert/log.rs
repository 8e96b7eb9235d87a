//! Lines of a function's output.

use coracle_model::{LogLine, LogStream};

use super::{ConvertError, Wire, enumeration, unspecified};
use crate::v1;

impl From<LogStream> for v1::log_line::Stream {
    fn from(value: LogStream) -> Self {
        match value {
            LogStream::Stdout => Self::Stdout,
            LogStream::Stderr => Self::Stderr,
            LogStream::Platform => Self::Platform,
        }
    }
}

impl TryFrom<v1::log_line::Stream> for LogStream {
    type Error = ConvertError;
    fn try_from(value: v1::log_line::Stream) -> Result<Self, ConvertError> {
        Ok(match value {
            v1::log_line::Stream::Unspecified => return Err(unspecified()),
            v1::log_line::Stream::Stdout => Self::Stdout,
            v1::log_line::Stream::Stderr => Self::Stderr,
            v1::log_line::Stream::Platform => Self::Platform,
        })
    }
}

impl From<LogLine> for v1::LogLine {
    fn from(value: LogLine) -> Self {
        Self {
            at_nanos: value.at_nanos,
            instance: value.instance.to_wire(),
            stream: v1::log_line::Stream::from(value.stream).into(),
            request: value.request,
            message: value.message,
        }
    }
}

impl TryFrom<v1::LogLine> for LogLine {
    type Error = ConvertError;
    fn try_from(value: v1::LogLine) -> Result<Self, ConvertError> {
        Ok(Self {
            at_nanos: value.at_nanos,
            instance: Wire::from_wire("instance", value.instance)?,
            stream: enumeration::<v1::log_line::Stream, _>("stream", value.stream)?,
            request: value.request,
            message: value.message,
        })
    }
}
