//! Between Gcore's words and the model. Pure: what has to be looked up is handed in.

use std::collections::BTreeMap;

use coracle_model::{
    Concurrency, Convention, Digest, Env, FunctionId, FunctionName, FunctionRef, Handler, Invalid,
    NamespaceName, Network, ProjectId, RevisionSettings, RuntimeName, ScaleBounds, Source, Stage,
    TaskId, TaskState, Timeout, Timestamp, limits,
    operation::{self, SettingsPatch},
    query::FunctionView,
    task::{Task, TaskSubject, TaskVerb},
};

use super::{flavor, wire};
use crate::{api::check_chars, body::Object};

/// Gcore's names are shorter than the model's.
const NAME_MAX: usize = 26;
const TIMEOUT_MAX_SECS: i64 = 180;
/// Written when the client's own words cannot be had back from the model's values.
pub(crate) const TIMEOUT: &str = "gcore/timeout";
pub(crate) const FLAVOR: &str = "gcore/flavor";
/// `false` where the client said so; without it an unset switch reads back as null.
pub(crate) const ENABLE_API_KEY: &str = "gcore/enable_api_key";

/// The model's field names in Gcore's words.
pub(crate) fn words(field: &str) -> String {
    if let Some(key) = field.strip_prefix("env.") {
        return format!("envs.{key}");
    }
    match field {
        "env" => "envs",
        "scale.min" => "autoscaling.min_instances",
        "scale.max" => "autoscaling.max_instances",
        "scale" => "autoscaling",
        "handler" => "main_method",
        "memory" | "cpu" => "flavor",
        "expires_at" => "expire",
        "namespace" | "key" => "name",
        other => other,
    }
    .to_owned()
}

fn reworded(invalid: Invalid) -> Invalid {
    let field = words(&invalid.field);
    invalid.at(field)
}

/// Of the model's names those that Gcore allows: two to 26 characters.
pub(crate) fn name<T>(field: &str, text: &str) -> Result<T, Invalid>
where
    T: std::str::FromStr<Err = Invalid>,
{
    let rule = || {
        Invalid::new(
            field,
            format_args!(
                "must be 2 to {NAME_MAX} characters of a-z, 0-9 and '-', start with a letter and \
                 not end with '-'"
            ),
        )
    };
    if !(2..=NAME_MAX).contains(&text.len()) {
        return Err(rule());
    }
    text.parse().map_err(|_: Invalid| rule())
}

pub(crate) fn description(text: Option<&str>) -> Result<Option<String>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    check_chars("description", text, 0, limits::DESCRIPTION_MAX_CHARS)?;
    Ok(Some(text.to_owned()))
}

pub(crate) fn envs(vars: Option<BTreeMap<String, String>>) -> Result<Option<Env>, Invalid> {
    vars.map(Env::new).transpose().map_err(reworded)
}

/// Instance bounds as far as they are given, each within Gcore's range, and together if both are.
pub(crate) fn autoscaling(
    given: &wire::Autoscaling,
) -> Result<(Option<u32>, Option<u32>), Invalid> {
    let most = limits::INSTANCES_MAX;
    let bound = |field: &str, value: Option<i64>, least: u32| {
        let Some(value) = value else { return Ok(None) };
        let fit = u32::try_from(value)
            .ok()
            .filter(|v| (least..=most).contains(v));
        fit.map(Some).ok_or_else(|| {
            Invalid::new(field, format_args!("must be {least} to {most}, is {value}"))
        })
    };
    let min = bound("autoscaling.min_instances", given.min_instances, 0)?;
    let max = bound("autoscaling.max_instances", given.max_instances, 1)?;
    if let (Some(min), Some(max)) = (min, max) {
        ScaleBounds::new(min, max).map_err(|_| min_over_max(min, max))?;
    }
    Ok((min, max))
}

pub(crate) fn min_over_max(min: u32, max: u32) -> Invalid {
    Invalid::new(
        "autoscaling.min_instances",
        format_args!("must not exceed max_instances: {min} > {max}"),
    )
}

/// The limit, and what an echo of 0 has to be remembered by.
pub(crate) fn timeout(value: i64) -> Result<Timeout, Invalid> {
    let fit = u32::try_from(value)
        .ok()
        .filter(|_| value <= TIMEOUT_MAX_SECS);
    let secs = fit.ok_or_else(|| {
        Invalid::new(
            "timeout",
            format_args!("must be 0 to {TIMEOUT_MAX_SECS} seconds, is {value}"),
        )
    })?;
    let secs = if secs == 0 {
        limits::TIMEOUT_DEFAULT_SECS
    } else {
        secs
    };
    Timeout::from_secs(secs).map_err(reworded)
}

pub(crate) fn handler(text: &str, convention: Convention) -> Result<Handler, Invalid> {
    Handler::new(text, convention).map_err(reworded)
}

pub(crate) fn code_text(text: &str) -> Result<(), Invalid> {
    check_chars("code_text", text, 1, limits::CODE_TEXT_MAX_CHARS)
}

pub(crate) fn dependencies(text: &str) -> Result<(), Invalid> {
    check_chars("dependencies", text, 0, limits::DEPENDENCIES_MAX_CHARS)
}

pub(crate) fn key_names<T>(names: &[String]) -> Result<Vec<T>, Invalid>
where
    T: std::str::FromStr<Err = Invalid>,
{
    let most = limits::FUNCTION_KEYS_MAX;
    if names.len() > most {
        return Err(Invalid::new(
            "keys",
            format_args!("must be at most {most} names, are {}", names.len()),
        ));
    }
    let parsed = names.iter().enumerate();
    parsed
        .map(|(index, text)| name(&format!("keys[{index}]"), text))
        .collect()
}

pub(crate) fn key_functions(
    given: &[Object<wire::KeyFunction>],
) -> Result<Vec<FunctionRef>, Invalid> {
    let most = limits::KEY_FUNCTIONS_MAX;
    if given.len() > most {
        return Err(Invalid::new(
            "functions",
            format_args!("must be at most {most} functions, are {}", given.len()),
        ));
    }
    let mut parsed = Vec::with_capacity(given.len());
    for (index, Object(item)) in given.iter().enumerate() {
        let namespace = name(&format!("functions[{index}].namespace"), &item.namespace)?;
        let function = FunctionRef {
            namespace,
            name: name(&format!("functions[{index}].name"), &item.name)?,
        };
        if !parsed.contains(&function) {
            parsed.push(function);
        }
    }
    Ok(parsed)
}

/// Null and "" are both no time.
pub(crate) fn expire(text: Option<&str>) -> Result<Option<Timestamp>, Invalid> {
    let text = text.filter(|text| !text.is_empty());
    text.map(|text| Timestamp::parse_rfc3339("expire", text))
        .transpose()
}

/// A create whose every field has been checked; only its texts are not yet stored.
#[derive(Debug)]
pub(crate) struct NewFunction {
    name: FunctionName,
    description: String,
    annotations: BTreeMap<String, String>,
    key_required: bool,
    pub(crate) keys: Vec<coracle_model::KeyName>,
    disabled: bool,
    scale: ScaleBounds,
    runtime: RuntimeName,
    runtime_requested: String,
    handler: Handler,
    env: Env,
    memory: coracle_model::Memory,
    cpu: coracle_model::MilliCpu,
    timeout: Timeout,
    pub(crate) code_text: String,
    pub(crate) dependencies: String,
}

impl NewFunction {
    /// `resolve` maps the runtime's name to an installed one.
    pub(crate) fn parse(
        given: wire::CreateFunction,
        resolve: impl FnOnce(&str) -> Result<RuntimeName, Invalid>,
    ) -> Result<Self, Invalid> {
        let name: FunctionName = name("name", &given.name)?;
        let runtime = resolve(&given.runtime)?;
        let timeout = timeout(given.timeout)?;
        let (cpu, memory) = flavor::parse(&given.flavor)?;
        let required = |field: &str| Invalid::new(field, "is required");
        let (min, max) = autoscaling(&given.autoscaling.0)?;
        let min = min.ok_or_else(|| required("autoscaling.min_instances"))?;
        let max = max.ok_or_else(|| required("autoscaling.max_instances"))?;
        code_text(&given.code_text)?;
        let handler = handler(&given.main_method, Convention::Kubeless)?;
        let dependency_text = given.dependencies.unwrap_or_default();
        dependencies(&dependency_text)?;
        let mut annotations = BTreeMap::new();
        remember(
            &mut annotations,
            Some(given.timeout),
            Some(&given.flavor),
            given.enable_api_key,
        );
        Ok(Self {
            name,
            description: description(given.description.as_deref())?.unwrap_or_default(),
            annotations,
            key_required: given.enable_api_key.unwrap_or(false),
            keys: key_names(given.keys.as_deref().unwrap_or_default())?,
            disabled: given.disabled.unwrap_or(false),
            scale: ScaleBounds::new(min, max).map_err(reworded)?,
            runtime,
            runtime_requested: given.runtime,
            handler,
            env: envs(given.envs)?.unwrap_or_default(),
            memory,
            cpu,
            timeout,
            code_text: given.code_text,
            dependencies: dependency_text,
        })
    }

    pub(crate) fn reference(&self, namespace: NamespaceName) -> FunctionRef {
        FunctionRef {
            namespace,
            name: self.name.clone(),
        }
    }

    pub(crate) fn operation(
        self,
        project: ProjectId,
        namespace: NamespaceName,
        id: FunctionId,
        task: TaskId,
        code: Digest,
        dependencies: Option<Digest>,
    ) -> operation::CreateFunction {
        let init_timeout = Timeout::from_secs(limits::INIT_TIMEOUT_DEFAULT_SECS)
            .expect("the default lies within the limits");
        operation::CreateFunction {
            id,
            project,
            function: FunctionRef {
                namespace,
                name: self.name,
            },
            description: self.description,
            annotations: self.annotations,
            key_required: self.key_required,
            keys: self.keys,
            disabled: self.disabled,
            scale: self.scale,
            settings: RevisionSettings {
                runtime: self.runtime,
                runtime_requested: self.runtime_requested,
                handler: self.handler,
                source: Source::Inline { code },
                dependencies,
                env: self.env,
                memory: self.memory,
                cpu: self.cpu,
                timeout: self.timeout,
                init_timeout,
                concurrency: Concurrency::ONE,
                network: Network::Egress,
            },
            task: Some(task),
        }
    }
}

/// Whether `view` is what this create would have made: then a repeated create is the same create.
pub(crate) fn made_by(create: &operation::CreateFunction, view: &FunctionView) -> bool {
    let function = &view.function;
    view.latest.id.number == 1
        && view.latest.settings == create.settings
        && function.description == create.description
        && function.scale == create.scale
        && function.disabled == create.disabled
        && function.key_required == create.key_required
        && function.annotations == create.annotations
}

/// Keeps the client's own words where the model's values would not give them back.
fn remember(
    annotations: &mut BTreeMap<String, String>,
    timeout: Option<i64>,
    flavor: Option<&str>,
    enable_api_key: Option<bool>,
) {
    match timeout {
        Some(0) => drop(annotations.insert(TIMEOUT.to_owned(), "0".to_owned())),
        Some(_) => drop(annotations.remove(TIMEOUT)),
        None => {}
    }
    if let Some(flavor) = flavor {
        annotations.insert(FLAVOR.to_owned(), flavor.to_owned());
    }
    match enable_api_key {
        Some(false) => drop(annotations.insert(ENABLE_API_KEY.to_owned(), "false".to_owned())),
        Some(true) => drop(annotations.remove(ENABLE_API_KEY)),
        None => {}
    }
}

/// An update whose every field has been checked against the function as it is; texts come apart,
/// since they have to be stored first.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) operation: operation::UpdateFunction,
    pub(crate) code_text: Option<String>,
    pub(crate) dependencies: Option<String>,
}

pub(crate) fn change(
    given: wire::PatchFunction,
    current: &FunctionView,
    task: TaskId,
) -> Result<Change, Invalid> {
    let settings = &current.latest.settings;
    immutable("name", given.name.as_deref(), &current.function.name)?;
    immutable(
        "runtime",
        given.runtime.as_deref(),
        &settings.runtime_requested,
    )?;

    let (scale_min, scale_max) = autoscaling(&given.autoscaling.unwrap_or_default().0)?;
    let (min, max) = (
        scale_min.unwrap_or(current.function.scale.min()),
        scale_max.unwrap_or(current.function.scale.max()),
    );
    if min > max {
        return Err(min_over_max(min, max));
    }
    if let Some(text) = &given.code_text {
        code_text(text)?;
    }
    if let Some(text) = &given.dependencies {
        dependencies(text)?;
    }
    let flavor = given.flavor.as_deref().map(flavor::parse).transpose()?;
    let mut annotations = current.function.annotations.clone();
    remember(
        &mut annotations,
        given.timeout,
        given.flavor.as_deref(),
        given.enable_api_key,
    );
    let convention = settings.handler.convention;
    Ok(Change {
        operation: operation::UpdateFunction {
            project: current.function.project,
            function: FunctionRef {
                namespace: current.namespace.clone(),
                name: current.function.name.clone(),
            },
            description: description(given.description.as_deref())?,
            // Only when changed: a patch of something else must not undo another client's.
            annotations: (annotations != current.function.annotations).then_some(annotations),
            key_required: given.enable_api_key,
            keys: given.keys.as_deref().map(key_names).transpose()?,
            disabled: given.disabled,
            scale_min,
            scale_max,
            settings: SettingsPatch {
                handler: given
                    .main_method
                    .map(|text| handler(&text, convention))
                    .transpose()?,
                env: envs(given.envs)?,
                cpu: flavor.map(|(cpu, _)| cpu),
                memory: flavor.map(|(_, memory)| memory),
                timeout: given.timeout.map(timeout).transpose()?,
                ..SettingsPatch::default()
            },
            task: Some(task),
        },
        code_text: given.code_text,
        dependencies: given.dependencies,
    })
}

pub(crate) fn immutable(field: &str, given: Option<&str>, current: &str) -> Result<(), Invalid> {
    match given {
        Some(given) if given != current => Err(Invalid::new(
            field,
            format_args!("cannot be changed; it is {current:?}"),
        )),
        _ => Ok(()),
    }
}

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
    if view.function.disabled {
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
