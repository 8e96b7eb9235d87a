//! Answers.

use std::collections::BTreeMap;

use coracle_model::{
    FunctionRef, Stage, TaskState, Timestamp, limits,
    query::FunctionView,
    task::{Task, TaskSubject, TaskVerb},
};

use super::{
    super::{flavor, wire},
    fields::{ENABLE_API_KEY, FLAVOR, TIMEOUT},
};

/// What was asked for, from the newest revision: a client reads back its own write.
pub(crate) fn function(
    view: &FunctionView,
    endpoint: String,
    code_text: String,
    dependencies: String,
) -> wire::Function {
    let function = &view.function;
    let settings = &view.latest.settings;
    let (build_status, build_message) = build_status(view);
    wire::Function {
        id: function.id.to_string(),
        name: function.name.to_string(),
        description: function.description.clone(),
        runtime: settings.runtime_requested.clone(),
        flavor: echoed_flavor(view),
        timeout: echoed_timeout(view),
        autoscaling: wire::AutoscalingView {
            min_instances: function.scale.min(),
            max_instances: function.scale.max(),
        },
        code_text,
        main_method: settings.handler.entry.clone(),
        dependencies,
        envs: settings.env.clone().into(),
        enable_api_key: echoed_enable_api_key(view),
        keys: view.keys.iter().map(ToString::to_string).collect(),
        disabled: function.disabled,
        endpoint,
        build_status,
        build_message,
        status: status(view),
        deploy_status: wire::DeployStatus {
            total: view.wanted,
            ready: view.ready,
            deployed: view.ready,
        },
        created_at: function.created_at.rfc3339(),
    }
}

/// An annotation counts only while it says the same as the value: another API may have changed that.
fn echoed_flavor(view: &FunctionView) -> String {
    let settings = &view.latest.settings;
    let own = view.function.annotations.get(FLAVOR);
    let same = |text: &&String| flavor::parse(text) == Ok((settings.cpu, settings.memory));
    own.filter(same)
        .cloned()
        .unwrap_or_else(|| flavor::name(settings.cpu.get(), settings.memory.mib()))
}

fn echoed_timeout(view: &FunctionView) -> u32 {
    let secs = view.latest.settings.timeout.secs();
    let zero = view
        .function
        .annotations
        .get(TIMEOUT)
        .is_some_and(|text| text == "0");
    if zero && secs == limits::TIMEOUT_DEFAULT_SECS {
        0
    } else {
        secs
    }
}

fn echoed_enable_api_key(view: &FunctionView) -> Option<bool> {
    let said_no = view.function.annotations.contains_key(ENABLE_API_KEY);
    match view.function.key_required {
        true => Some(true),
        false => said_no.then_some(false),
    }
}

fn build_status(view: &FunctionView) -> (&'static str, String) {
    let revision = &view.latest;
    let built = || {
        revision
            .build
            .as_ref()
            .map_or_else(String::new, |build| build.message.clone())
    };
    match &revision.stage {
        Stage::Received => ("Pending", "Waiting for a builder".to_owned()),
        Stage::Building => ("Building", "Building".to_owned()),
        Stage::Deploying | Stage::Running => ("Built", built()),
        Stage::BuildFailed { reason } => ("Failed", reason.clone()),
        Stage::DeployFailed { reason } => {
            ("Built", format!("Built, but it does not start: {reason}"))
        }
        Stage::Abandoned => ("Failed", "Superseded by a newer update".to_owned()),
    }
}

/// As long as some revision answers, the function is running; how the newest fares is what
/// `build_status` and `build_message` are for.
pub(crate) fn status(view: &FunctionView) -> &'static str {
    if !view.function.may_run() {
        return "Disabled";
    }
    if view.serving.is_some() {
        return "Running";
    }
    match view.latest.stage {
        Stage::Received => "Pending",
        Stage::Building => "Building",
        Stage::Deploying => "Deploying",
        Stage::Running => "Running",
        Stage::BuildFailed { .. } | Stage::DeployFailed { .. } | Stage::Abandoned => "Failed",
    }
}

/// Counts functions, not instances.
pub(crate) fn namespace(
    namespace: &coracle_model::Namespace,
    functions: &[FunctionView],
) -> wire::NamespaceHead {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let ready = number(
        functions
            .iter()
            .filter(|view| status(view) == "Running")
            .count(),
    );
    wire::NamespaceHead {
        name: namespace.name.to_string(),
        description: namespace.description.clone(),
        envs: namespace.env.clone().into(),
        status: "Active",
        created_at: namespace.created_at.rfc3339(),
        functions_deploy_status: wire::DeployStatus {
            total: number(functions.len()),
            ready,
            deployed: ready,
        },
    }
}

pub(crate) fn key(key: &coracle_model::FunctionKey, now: Timestamp) -> wire::Key {
    let function = |function: &FunctionRef| wire::KeyFunction {
        name: function.name.to_string(),
        namespace: function.namespace.to_string(),
    };
    wire::Key {
        name: key.name.to_string(),
        description: key.description.clone(),
        functions: key.functions.iter().map(function).collect(),
        expire: key.expires_at.map(Timestamp::rfc3339),
        created_at: key.created_at.rfc3339(),
        status: if key.is_live(now) {
            "Active"
        } else {
            "Expired"
        },
        secret: None,
    }
}

pub(crate) fn log_entry(line: coracle_model::LogLine) -> wire::LogEntry {
    wire::LogEntry {
        message: line.message,
        pod: line.instance.to_string(),
        time: crate::api::rfc3339_nanos(line.at_nanos),
    }
}

pub(crate) fn task_state(state: &TaskState) -> &'static str {
    match state {
        TaskState::New => "NEW",
        TaskState::Running => "RUNNING",
        TaskState::Finished => "FINISHED",
        TaskState::Error(_) => "ERROR",
    }
}

pub(crate) fn task_type(task: &Task) -> String {
    let verb = match task.verb {
        TaskVerb::Create => "create",
        TaskVerb::Update => "patch",
        TaskVerb::Delete => "delete",
    };
    let kind = match task.subject {
        TaskSubject::Namespace { .. } => "namespace",
        TaskSubject::Function { .. } => "function",
    };
    format!("{verb}_faas_{kind}")
}

pub(crate) fn task(task: &Task, region: u32) -> wire::Task {
    let (kind, id, data) = match &task.subject {
        TaskSubject::Namespace { name } => (
            "faas_namespaces",
            name,
            BTreeMap::from([("namespace_name", name.clone())]),
        ),
        TaskSubject::Function {
            namespace,
            name,
            id,
        } => (
            "faas_functions",
            id,
            BTreeMap::from([
                ("namespace_name", namespace.clone()),
                ("function_name", name.clone()),
            ]),
        ),
    };
    let created = (task.verb == TaskVerb::Create).then(|| (kind, vec![id.clone()]));
    wire::Task {
        id: task.id.to_string(),
        task_type: task_type(task),
        state: task_state(&task.state),
        created_on: task.created_at.rfc3339(),
        updated_on: task.updated_at.rfc3339(),
        finished_on: task.finished_at.map(Timestamp::rfc3339),
        error: match &task.state {
            TaskState::Error(reason) => Some(reason.clone()),
            _ => None,
        },
        created_resources: created.into_iter().collect(),
        project_id: task.project.0,
        region_id: region,
        user_id: 0,
        client_id: 0,
        user_client_id: 0,
        request_id: None,
        data: Some(data),
        detailed_state: None,
        acknowledged_at: task.acknowledged_at.map(Timestamp::rfc3339),
        acknowledged_by: task.acknowledged_at.map(|_| 0),
        job_id: None,
        schedule_id: None,
        lifecycle_policy_id: None,
    }
}
