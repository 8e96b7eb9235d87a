//! Problem details (RFC 9457).

use serde::Serialize;
use utoipa::ToSchema;

use crate::failure::Failure;

/// Where the pages about error codes are read.
const PAGES: &str = "https://github.com/coracle/coracle/blob/main/docs/errors";

/// An error, as `application/problem+json`.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// Address of the page about this kind of error.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The kind of error in a few words.
    pub(crate) title: String,
    /// HTTP status.
    pub(crate) status: u16,
    /// What happened this time.
    pub(crate) detail: String,
    /// The stable name of the kind.
    pub(crate) code: String,
    /// Also in the header X-Request-Id.
    pub(crate) request_id: String,
    /// The member or parameter at fault, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
}

pub(crate) fn body(failure: &Failure, request_id: &str) -> String {
    let code = failure.code;
    let problem = Problem {
        kind: format!("{PAGES}/{}.md", code.as_str()),
        title: code.title().to_owned(),
        status: code.status().as_u16(),
        detail: failure.message.clone(),
        code: code.as_str().to_owned(),
        request_id: request_id.to_owned(),
        field: failure.field.clone(),
    };
    serde_json::to_string(&problem).expect("strings and a number can be written as JSON")
}
