//! A new function.

use std::collections::BTreeMap;

use coracle_model::{
    Concurrency, Convention, Digest, Env, FunctionId, FunctionName, FunctionRef, Handler, Invalid,
    NamespaceName, Network, PlacementRules, ProjectId, RevisionSettings, RuntimeName, ScaleBounds,
    Source, TaskId, Timeout, limits, operation, query::FunctionView,
};

use super::{
    super::{flavor, wire},
    fields::{
        autoscaling, code_text, dependencies, description, envs, handler, key_names, name,
        remember, reworded, timeout,
    },
};

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
            placement: PlacementRules::default(),
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
