//! Single fields: Gcore's rules, and its names for the model's fields.

use std::collections::BTreeMap;

use coracle_model::{
    Convention, Env, FunctionRef, Handler, Invalid, ScaleBounds, Timeout, Timestamp, limits,
};

use super::super::wire;
use crate::{api::check_chars, body::Object};

/// Gcore's names are shorter than the model's.
pub(crate) const NAME_MAX: usize = 26;
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

pub(super) fn reworded(invalid: Invalid) -> Invalid {
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
    let bound = |field: &str, value: Option<i64>| {
        let Some(value) = value else { return Ok(None) };
        let fit = u32::try_from(value).ok().filter(|v| *v <= most);
        fit.map(Some)
            .ok_or_else(|| Invalid::new(field, format_args!("must be 0 to {most}, is {value}")))
    };
    let min = bound("autoscaling.min_instances", given.min_instances)?;
    let max = bound("autoscaling.max_instances", given.max_instances)?;
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

pub(crate) fn immutable(field: &str, given: Option<&str>, current: &str) -> Result<(), Invalid> {
    match given {
        Some(given) if given != current => Err(Invalid::new(
            field,
            format_args!("cannot be changed; it is {current:?}"),
        )),
        _ => Ok(()),
    }
}

/// Keeps the client's own words where the model's values would not give them back.
pub(super) fn remember(
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
