//! `/tasks`: what a client polls while a write takes effect.

use std::{cmp::Reverse, sync::Arc};

use axum::{Json, extract::State};
use coracle_model::{Operation, ProjectId, TaskId, Timestamp, task::Task};

use super::{
    map,
    scope::{Caller, Scope, integer},
    wire,
};
use crate::{api::Api, failure::Failure, query::Params};

const STATES: [&str; 4] = ["NEW", "RUNNING", "FINISHED", "ERROR"];

/// Another tenant's task does not exist.
async fn find(api: &Api, caller: &Caller) -> Result<Task, Failure> {
    let id: TaskId = caller.path.named("task_id", "task")?;
    let task = api
        .port
        .task(id)
        .await?
        .filter(|task| caller.may_see(task.project));
    task.ok_or_else(|| Failure::not_found(format_args!("task {id}")))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    caller: Caller,
) -> Result<Json<wire::Task>, Failure> {
    let task = find(&api, &caller).await?;
    Ok(Json(map::task(&task, api.info.region)))
}

pub(super) async fn acknowledge(
    State(api): State<Arc<Api>>,
    caller: Caller,
) -> Result<Json<wire::Task>, Failure> {
    let task = find(&api, &caller).await?;
    let acknowledge = Operation::AcknowledgeTask {
        project: task.project,
        id: task.id,
    };
    api.write(acknowledge, map::words).await?;
    let task = find(&api, &caller).await?;
    Ok(Json(map::task(&task, api.info.region)))
}

pub(super) async fn active(
    State(api): State<Arc<Api>>,
    scope: Scope,
) -> Result<Json<wire::List<wire::Task>>, Failure> {
    let mut tasks = api.port.tasks(Some(scope.project.id)).await?;
    tasks.retain(|task| !task.state.is_final());
    tasks.sort_by_key(|task| Reverse((task.created_at, task.id)));
    let results: Vec<_> = tasks
        .iter()
        .map(|task| map::task(task, api.info.region))
        .collect();
    Ok(Json(wire::List {
        count: results.len(),
        results,
    }))
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    caller: Caller,
    params: Params,
) -> Result<Json<wire::List<wire::Task>>, Failure> {
    let filter = Filter::parse(&params)?;
    let mut tasks = api.port.tasks(None).await?;
    tasks.retain(|task| caller.may_see(task.project) && filter.takes(task, api.info.region));
    tasks.sort_by_key(|task| (task.created_at, task.id));
    if !filter.oldest_first {
        tasks.reverse();
    }
    let shown = tasks.iter().skip(filter.offset).take(filter.limit);
    let results = shown.map(|task| map::task(task, api.info.region)).collect();
    Ok(Json(wire::List {
        count: tasks.len(),
        results,
    }))
}

#[derive(Debug)]
struct Filter {
    projects: Vec<ProjectId>,
    regions: Vec<u32>,
    states: Vec<String>,
    task_type: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    acknowledged: Option<bool>,
    oldest_first: bool,
    limit: usize,
    offset: usize,
}

impl Filter {
    fn parse(params: &Params) -> Result<Self, Failure> {
        let integers = |name: &str| -> Result<Vec<u32>, Failure> {
            several(params, name)
                .map(|text| integer(name, text))
                .collect()
        };
        let states: Vec<String> = several(params, "state").map(str::to_uppercase).collect();
        if states.iter().any(|state| !STATES.contains(&state.as_str())) {
            let known = STATES.join(", ");
            return Err(Failure::invalid(
                "state",
                format_args!("must be one of {known}"),
            ));
        }
        let oldest_first = match params.get("order_by") {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(_) => return Err(Failure::invalid("order_by", "must be asc or desc")),
        };
        let limit = params.integer("limit", 10, 1..=1_000)?;
        let offset = params.integer("offset", 0, 0..=u64::from(u32::MAX))?;
        Ok(Self {
            projects: integers("project_id")?.into_iter().map(ProjectId).collect(),
            regions: integers("region_id")?,
            states,
            task_type: params.get("task_type").map(str::to_owned),
            from: time(params, "from_timestamp")?,
            to: time(params, "to_timestamp")?,
            acknowledged: params.boolean("is_acknowledged")?,
            oldest_first,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            offset: usize::try_from(offset).unwrap_or(usize::MAX),
        })
    }

    fn takes(&self, task: &Task, region: u32) -> bool {
        let any = |empty: bool, found: bool| empty || found;
        any(
            self.projects.is_empty(),
            self.projects.contains(&task.project),
        ) && any(self.regions.is_empty(), self.regions.contains(&region))
            && any(
                self.states.is_empty(),
                self.states
                    .iter()
                    .any(|s| s == map::task_state(&task.state)),
            )
            && self
                .task_type
                .as_ref()
                .is_none_or(|kind| *kind == map::task_type(task))
            && self.from.is_none_or(|from| task.created_at >= from)
            && self.to.is_none_or(|to| task.created_at <= to)
            && self
                .acknowledged
                .is_none_or(|yes| task.acknowledged_at.is_some() == yes)
    }
}

/// A parameter given several times, or once with commas.
fn several<'a>(params: &'a Params, name: &'a str) -> impl Iterator<Item = &'a str> {
    params
        .all(name)
        .flat_map(|text| text.split(','))
        .filter(|text| !text.is_empty())
}

/// Clients leave the zone out, which means UTC.
fn time(params: &Params, name: &str) -> Result<Option<Timestamp>, Failure> {
    let Some(text) = params.get(name) else {
        return Ok(None);
    };
    let zoned = Timestamp::parse_rfc3339(name, text);
    Ok(Some(zoned.or_else(|error| {
        Timestamp::parse_rfc3339(name, &format!("{text}Z")).map_err(|_| error)
    })?))
}

#[cfg(test)]
mod tests {
    use coracle_model::TaskState;

    use super::*;

    #[test]
    fn every_state_can_be_asked_for() {
        let states = [
            TaskState::New,
            TaskState::Running,
            TaskState::Finished,
            TaskState::Error("x".into()),
        ];
        assert_eq!(states.map(|state| map::task_state(&state)), STATES);
    }
}
