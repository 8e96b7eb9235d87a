//! Between the native JSON and the model. Pure: what has to be looked up is handed in.

mod view;

use std::{collections::BTreeMap, str::FromStr};

use coracle_model::{
    Concurrency, Digest, Env, FunctionId, FunctionName, FunctionRef, Handler, Invalid, KeyName,
    Labels, Memory, MilliCpu, NamespaceName, PlacementRules, ProjectId, RevisionSettings,
    RuntimeName, ScaleBounds, Source, Spread, Timeout, Timestamp, limits,
    operation::{self, SettingsPatch},
    query::FunctionView,
};

pub(super) use view::{decision, exit, function, instance, key, log_line, revision};

use super::wire;
use crate::{
    api::{check_annotations, check_chars},
    body::Object,
};

const MEMORY_DEFAULT_MIB: i64 = 128;
const CPU_DEFAULT_MILLIS: i64 = 250;
const SCALE_MAX_DEFAULT: u32 = 10;

/// The model's field names in this API's words.
pub(crate) fn words(field: &str) -> String {
    match field {
        "memory" => "memory_mib",
        "cpu" => "cpu_millis",
        "timeout" => "timeout_seconds",
        "init_timeout" => "init_timeout_seconds",
        other => other,
    }
    .to_owned()
}

pub(crate) fn name<T: FromStr<Err = Invalid>>(field: &str, text: &str) -> Result<T, Invalid> {
    text.parse().map_err(|invalid: Invalid| invalid.at(field))
}

pub(crate) fn description(text: Option<String>) -> Result<Option<String>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    check_chars("description", &text, 0, limits::DESCRIPTION_MAX_CHARS)?;
    Ok(Some(text))
}

/// A number as JSON has it, as a quantity; the quantity's own bounds are in its error.
fn quantity<T>(
    field: &str,
    value: i64,
    parse: impl FnOnce(u32) -> Result<T, Invalid>,
) -> Result<T, Invalid> {
    if value < 0 {
        return Err(Invalid::new(
            field,
            format_args!("must not be negative, is {value}"),
        ));
    }
    parse(u32::try_from(value).unwrap_or(u32::MAX)).map_err(|invalid| invalid.at(field))
}

fn scale(given: wire::ScaleChange, min: u32, max: u32) -> Result<ScaleBounds, Invalid> {
    let bound = |field, value: Option<i64>, or| match value {
        Some(value) => quantity(field, value, Ok),
        None => Ok(or),
    };
    ScaleBounds::new(
        bound("scale.min", given.min, min)?,
        bound("scale.max", given.max, max)?,
    )
}

fn placement(given: wire::PlacementChange) -> Result<PlacementRules, Invalid> {
    let labels = |field: &str, given: Option<BTreeMap<String, String>>| {
        Labels::new(given.unwrap_or_default()).map_err(|invalid| {
            let key = invalid.field.strip_prefix("labels").unwrap_or_default();
            let field = format!("placement.{field}{key}");
            invalid.at(field)
        })
    };
    Ok(PlacementRules {
        required: labels("required", given.required)?,
        preferred: labels("preferred", given.preferred)?,
        spread: match given.spread {
            None | Some(wire::Spread::Auto) => Spread::Auto,
            Some(wire::Spread::Node) => Spread::Node,
            Some(wire::Spread::Zone) => Spread::Zone,
        },
    })
}

fn handler(entry: String, convention: wire::Convention) -> Result<Handler, Invalid> {
    Handler::new(entry, convention.into())
}

fn code(text: &str) -> Result<(), Invalid> {
    check_chars("code", text, 1, limits::CODE_TEXT_MAX_CHARS)
}

fn dependencies(text: &str) -> Result<(), Invalid> {
    check_chars("dependencies", text, 0, limits::DEPENDENCIES_MAX_CHARS)
}

fn key_names(names: &[String]) -> Result<Vec<KeyName>, Invalid> {
    let most = limits::FUNCTION_KEYS_MAX;
    if names.len() > most {
        return Err(Invalid::new(
            "keys",
            format_args!("must be at most {most} names, are {}", names.len()),
        ));
    }
    names
        .iter()
        .enumerate()
        .map(|(at, text)| name(&format!("keys[{at}]"), text))
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
    for (at, Object(item)) in given.iter().enumerate() {
        let function = FunctionRef {
            namespace: name(&format!("functions[{at}].namespace"), &item.namespace)?,
            name: name(&format!("functions[{at}].name"), &item.name)?,
        };
        if !parsed.contains(&function) {
            parsed.push(function);
        }
    }
    Ok(parsed)
}

pub(crate) fn time(field: &str, text: Option<&str>) -> Result<Option<Timestamp>, Invalid> {
    text.map(|text| Timestamp::parse_rfc3339(field, text))
        .transpose()
}

/// A create whose every field has been checked; its texts are still to be stored.
#[derive(Debug)]
pub(crate) struct NewFunction {
    pub(crate) name: FunctionName,
    pub(crate) keys: Vec<KeyName>,
    pub(crate) code: String,
    pub(crate) dependencies: String,
    settings: Settings,
    description: String,
    annotations: BTreeMap<String, String>,
    key_required: bool,
    disabled: bool,
    scale: ScaleBounds,
    placement: PlacementRules,
}

/// [`RevisionSettings`] without the texts.
#[derive(Debug)]
struct Settings {
    runtime: RuntimeName,
    runtime_requested: String,
    handler: Handler,
    env: Env,
    memory: Memory,
    cpu: MilliCpu,
    timeout: Timeout,
    init_timeout: Timeout,
    concurrency: Concurrency,
    network: coracle_model::Network,
}

impl NewFunction {
    /// `resolve` maps the runtime's name to an installed one.
    pub(crate) fn parse(
        given: wire::CreateFunction,
        resolve: impl FnOnce(&str) -> Result<RuntimeName, Invalid>,
    ) -> Result<Self, Invalid> {
        let seconds = i64::from;
        let timeout = given
            .timeout_seconds
            .unwrap_or(seconds(limits::TIMEOUT_DEFAULT_SECS));
        let init = given
            .init_timeout_seconds
            .unwrap_or(seconds(limits::INIT_TIMEOUT_DEFAULT_SECS));
        let settings = Settings {
            runtime: resolve(&given.runtime)?,
            runtime_requested: given.runtime,
            handler: handler(
                given.handler,
                given.convention.unwrap_or(wire::Convention::Http),
            )?,
            env: Env::new(given.env.unwrap_or_default())?,
            memory: quantity(
                "memory_mib",
                given.memory_mib.unwrap_or(MEMORY_DEFAULT_MIB),
                Memory::from_mib,
            )?,
            cpu: quantity(
                "cpu_millis",
                given.cpu_millis.unwrap_or(CPU_DEFAULT_MILLIS),
                MilliCpu::new,
            )?,
            timeout: quantity("timeout_seconds", timeout, Timeout::from_secs)?,
            init_timeout: quantity("init_timeout_seconds", init, Timeout::from_secs)?,
            concurrency: quantity(
                "concurrency",
                given.concurrency.unwrap_or(1),
                Concurrency::new,
            )?,
            network: given.network.unwrap_or(wire::Network::Egress).into(),
        };
        code(&given.code)?;
        let dependency_text = given.dependencies.unwrap_or_default();
        dependencies(&dependency_text)?;
        let annotations = given.annotations.unwrap_or_default();
        check_annotations(&annotations)?;
        Ok(Self {
            name: name("name", &given.name)?,
            keys: key_names(&given.keys.unwrap_or_default())?,
            code: given.code,
            dependencies: dependency_text,
            settings,
            description: description(given.description)?.unwrap_or_default(),
            annotations,
            key_required: given.key_required.unwrap_or(false),
            disabled: given.disabled.unwrap_or(false),
            scale: scale(given.scale.unwrap_or_default().0, 0, SCALE_MAX_DEFAULT)?,
            placement: placement(given.placement.unwrap_or_default().0)?,
        })
    }

    pub(crate) fn operation(
        self,
        project: ProjectId,
        namespace: NamespaceName,
        id: FunctionId,
        code: Digest,
        dependencies: Option<Digest>,
    ) -> operation::CreateFunction {
        let settings = self.settings;
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
            placement: self.placement,
            settings: RevisionSettings {
                runtime: settings.runtime,
                runtime_requested: settings.runtime_requested,
                handler: settings.handler,
                source: Source::Inline { code },
                dependencies,
                env: settings.env,
                memory: settings.memory,
                cpu: settings.cpu,
                timeout: settings.timeout,
                init_timeout: settings.init_timeout,
                concurrency: settings.concurrency,
                network: settings.network,
            },
            task: None,
        }
    }
}

/// An update checked against the function as it is; its texts are still to be stored.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) operation: operation::UpdateFunction,
    pub(crate) code: Option<String>,
    /// "" takes them away.
    pub(crate) dependencies: Option<String>,
}

pub(crate) fn change(given: wire::PatchFunction, view: &FunctionView) -> Result<Change, Invalid> {
    let (function, settings) = (&view.function, &view.latest.settings);
    immutable("name", given.name.as_deref(), &[&function.name])?;
    let runtimes = [settings.runtime.as_str(), &settings.runtime_requested];
    immutable("runtime", given.runtime.as_deref(), &runtimes)?;
    let handler = if given.handler.is_some() || given.convention.is_some() {
        let entry = given
            .handler
            .unwrap_or_else(|| settings.handler.entry.clone());
        let convention = given
            .convention
            .unwrap_or(settings.handler.convention.into());
        Some(handler(entry, convention)?)
    } else {
        None
    };
    let given_scale = given.scale.map(|Object(scale)| scale);
    if let Some(given) = given_scale {
        scale(given, function.scale.min(), function.scale.max())?;
    }
    let bound = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
    if let Some(text) = &given.code {
        code(text)?;
    }
    let dependency_text = given.dependencies.map(Option::unwrap_or_default);
    if let Some(text) = &dependency_text {
        dependencies(text)?;
    }
    if let Some(annotations) = &given.annotations {
        check_annotations(annotations)?;
    }
    fn each<T>(
        field: &str,
        value: Option<i64>,
        parse: impl FnOnce(u32) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Invalid> {
        value.map(|value| quantity(field, value, parse)).transpose()
    }
    Ok(Change {
        operation: operation::UpdateFunction {
            project: function.project,
            function: FunctionRef {
                namespace: view.namespace.clone(),
                name: function.name.clone(),
            },
            description: description(given.description)?,
            annotations: given.annotations,
            key_required: given.key_required,
            keys: given.keys.as_deref().map(key_names).transpose()?,
            disabled: given.disabled,
            scale_min: bound(given_scale.and_then(|scale| scale.min)),
            scale_max: bound(given_scale.and_then(|scale| scale.max)),
            placement: given
                .placement
                .map(|Object(given)| placement(given))
                .transpose()?,
            settings: SettingsPatch {
                handler,
                env: given.env.map(Env::new).transpose()?,
                memory: each("memory_mib", given.memory_mib, Memory::from_mib)?,
                cpu: each("cpu_millis", given.cpu_millis, MilliCpu::new)?,
                timeout: each("timeout_seconds", given.timeout_seconds, Timeout::from_secs)?,
                init_timeout: each(
                    "init_timeout_seconds",
                    given.init_timeout_seconds,
                    Timeout::from_secs,
                )?,
                concurrency: each("concurrency", given.concurrency, Concurrency::new)?,
                network: given.network.map(Into::into),
                ..SettingsPatch::default()
            },
            task: None,
        },
        code: given.code,
        dependencies: dependency_text,
    })
}

fn immutable(field: &str, given: Option<&str>, current: &[&str]) -> Result<(), Invalid> {
    match given {
        Some(given) if !current.contains(&given) => Err(Invalid::new(
            field,
            format_args!("cannot be changed; it is {:?}", current[0]),
        )),
        _ => Ok(()),
    }
}

impl From<wire::Convention> for coracle_model::Convention {
    fn from(value: wire::Convention) -> Self {
        match value {
            wire::Convention::Kubeless => Self::Kubeless,
            wire::Convention::Scaleway => Self::Scaleway,
            wire::Convention::Scf => Self::Scf,
            wire::Convention::Http => Self::Http,
        }
    }
}

impl From<coracle_model::Convention> for wire::Convention {
    fn from(value: coracle_model::Convention) -> Self {
        match value {
            coracle_model::Convention::Kubeless => Self::Kubeless,
            coracle_model::Convention::Scaleway => Self::Scaleway,
            coracle_model::Convention::Scf => Self::Scf,
            coracle_model::Convention::Http => Self::Http,
        }
    }
}

impl From<wire::Network> for coracle_model::Network {
    fn from(value: wire::Network) -> Self {
        match value {
            wire::Network::Egress => Self::Egress,
            wire::Network::None => Self::None,
        }
    }
}
