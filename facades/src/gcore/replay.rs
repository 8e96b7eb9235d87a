//! Requests that a client sends again because it missed the answer. Gcore's Python SDK counts its
//! repetitions in a header; only then may "it is already so" be the answer to a write. A 409 or 404
//! that was *received* is never repeated by it: see `X-Should-Retry` in `envelope`.

use std::{convert::Infallible, sync::Arc};

use axum::extract::FromRequestParts;
use coracle_model::{
    ProjectId, TaskId, Timestamp,
    task::{Task, TaskSubject, TaskVerb},
};
use http::{HeaderName, request::Parts};

use crate::{api::Api, failure::Failure};

const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");
/// The SDK gives up within a minute; an older task is another request's.
const WINDOW_MILLIS: u64 = 5 * 60 * 1_000;

/// Whether the client says that it sent the same request before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repeated(bool);

impl FromRequestParts<Arc<Api>> for Repeated {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Api>) -> Result<Self, Infallible> {
        let count = parts
            .headers
            .get(RETRY_COUNT)
            .and_then(|value| value.to_str().ok());
        Ok(Self(
            count
                .and_then(|text| text.parse::<u32>().ok())
                .is_some_and(|count| count > 0),
        ))
    }
}

impl Repeated {
    /// The task of the first sending, if this is a second one and the first had its effect.
    pub(super) async fn task(
        self,
        api: &Api,
        project: ProjectId,
        verb: TaskVerb,
        is_subject: impl Fn(&TaskSubject) -> bool,
    ) -> Result<Option<TaskId>, Failure> {
        if !self.0 {
            return Ok(None);
        }
        let tasks = api.port.tasks(Some(project)).await?;
        Ok(newest(&tasks, verb, api.env.now(), is_subject))
    }
}

fn newest(
    tasks: &[Task],
    verb: TaskVerb,
    now: Timestamp,
    is_subject: impl Fn(&TaskSubject) -> bool,
) -> Option<TaskId> {
    let of_it = tasks.iter().filter(|task| is_subject(&task.subject));
    // Only the last thing that happened to the subject: what came before has been undone since.
    let last = of_it.max_by_key(|task| task.created_at)?;
    let fits = last.verb == verb && now.since(last.created_at) <= WINDOW_MILLIS;
    fits.then_some(last.id)
}

#[cfg(test)]
mod tests {
    use coracle_model::TaskState;
    use uuid::Uuid;

    use super::*;

    fn task(id: u128, verb: TaskVerb, at: u64) -> Task {
        Task {
            id: TaskId(Uuid::from_u128(id)),
            project: ProjectId(1),
            verb,
            subject: TaskSubject::Namespace { name: "a".into() },
            revision: None,
            state: TaskState::Finished,
            acknowledged_at: None,
            created_at: Timestamp(at),
            updated_at: Timestamp(at),
            finished_at: None,
        }
    }

    #[test]
    fn only_the_last_recent_task_of_that_kind_is_taken_for_the_first_sending() {
        let tasks = [task(1, TaskVerb::Create, 10), task(2, TaskVerb::Delete, 20)];
        let find =
            |verb, now| newest(&tasks, verb, Timestamp(now), |_| true).map(|id| id.0.as_u128());
        assert_eq!(find(TaskVerb::Delete, 30), Some(2));
        assert_eq!(find(TaskVerb::Create, 30), None);
        assert_eq!(find(TaskVerb::Delete, 21 + WINDOW_MILLIS), None);
        assert_eq!(
            newest(&tasks, TaskVerb::Delete, Timestamp(30), |_| false),
            None
        );
    }
}
