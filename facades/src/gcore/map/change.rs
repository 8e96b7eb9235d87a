//! A changed function.

use coracle_model::{
    FunctionRef, Invalid, TaskId,
    operation::{self, SettingsPatch},
    query::FunctionView,
};

use super::{
    super::{flavor, wire},
    fields::{
        autoscaling, code_text, dependencies, description, envs, handler, immutable, key_names,
        min_over_max, remember, timeout,
    },
};

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
            placement: None,
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
