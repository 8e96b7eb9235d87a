//! Request bodies: read within bounds, parsed with the place of the mistake.

use std::{fmt, marker::PhantomData, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::error::Category;

use crate::{codes::Code, failure::Failure};

/// Largest JSON body. Code and dependencies are 100,000 characters each, and a character can take
/// twelve bytes (`\ud83d\ude00`); the rest is small.
pub(crate) const JSON_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Largest body handed on by the invoke route, which holds it in memory; calls with larger ones go
/// to the invocation listener, which streams.
pub(crate) const INVOKE_MAX_BYTES: usize = 6 * 1024 * 1024;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
const MESSAGE_MAX_CHARS: usize = 300;

pub(crate) async fn read(body: Body, limit: usize) -> Result<Bytes, Failure> {
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    match whole {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Failure::new(
            Code::PayloadTooLarge,
            format!("the body must be at most {limit} bytes"),
        )),
        Ok(Err(_)) => Err(Failure::new(
            Code::MalformedBody,
            "the body ended before its time",
        )),
        Err(_) => Err(Failure::new(
            Code::RequestTimeout,
            format!(
                "the body did not arrive within {} seconds",
                BODY_TIMEOUT.as_secs()
            ),
        )),
    }
}

pub(crate) async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    parse(&read(body, JSON_MAX_BYTES).await?)
}

/// Parses JSON; a wrong type or a missing member names its field.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    deserializer.end().map_err(|error| explain(".", &error))?;
    Ok(value)
}

/// A struct that is written as an object. serde's own deserialization would also take an array of
/// the members in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

fn explain(path: &str, error: &serde_json::Error) -> Failure {
    let full = error.to_string();
    let text = full
        .rsplit_once(" at line ")
        .map_or(full.as_str(), |(text, _)| text);
    if error.classify() != Category::Data {
        return Failure::new(
            Code::MalformedBody,
            format!(
                "the body is not valid JSON: {} at line {}, column {}",
                short(text),
                error.line(),
                error.column()
            ),
        );
    }
    if let Some(unknown) = quoted(text, "unknown field `") {
        return Failure::invalid(beside(path, unknown), "is not a field of this object");
    }
    match (quoted(text, "missing field `"), path) {
        (Some(name), path) => Failure::invalid(beside(path, name), "is required"),
        (None, ".") => Failure::new(
            Code::InvalidValue,
            format!("the body is of the wrong type: {}", plain(text)),
        ),
        (None, path) => Failure::invalid(short(path), plain(text)),
    }
}

/// The word in backticks that follows `prefix`.
fn quoted<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    text.strip_prefix(prefix)?.split('`').next()
}

/// A member's whole name, given the path of its object, or of the member itself.
fn beside(path: &str, name: &str) -> String {
    let name = short(name);
    if path == "." || path == name {
        name
    } else if path
        .strip_suffix(&name)
        .is_some_and(|object| object.ends_with('.'))
    {
        path.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// serde's words for types, in JSON's.
fn plain(text: &str) -> String {
    let Some((found, expected)) = text.rsplit_once(", expected ") else {
        return short(text);
    };
    let expected = match expected {
        "i64" | "u64" | "u32" => "an integer",
        other => other,
    };
    format!("{}, expected {expected}", short(found))
}

/// The offending value is quoted by serde in full, however long it is.
fn short(text: &str) -> String {
    if text.chars().count() <= MESSAGE_MAX_CHARS {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(MESSAGE_MAX_CHARS).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only the parsing is of interest")]
    struct Inner {
        max: i64,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only the parsing is of interest")]
    struct Outer {
        name: String,
        scale: Object<Inner>,
    }

    fn fails(json: &str) -> (Code, Option<String>, String) {
        let failure = parse::<Outer>(json.as_bytes()).expect_err(json);
        (failure.code, failure.field, failure.message)
    }

    #[test]
    fn mistakes_are_placed() {
        let (code, field, message) = fails("{\n\"name\": }");
        assert_eq!((code, field), (Code::MalformedBody, None));
        assert!(message.ends_with("at line 2, column 9"), "{message}");

        for (json, field, words) in [
            (r#"{"scale":{"max":1}}"#, "name", "is required"),
            (r#"{"name":"a","scale":{}}"#, "scale.max", "is required"),
            (
                r#"{"name":"a","scale":{"max":1,"x":1}}"#,
                "scale.x",
                "is not a field",
            ),
            (
                r#"{"name":1,"scale":{"max":1}}"#,
                "name",
                "expected a string",
            ),
            (
                r#"{"name":"a","scale":{"max":"1"}}"#,
                "scale.max",
                "expected an integer",
            ),
            (
                r#"{"name":"a","scale":{"max":1.5}}"#,
                "scale.max",
                "expected an integer",
            ),
            (
                r#"{"name":null,"scale":{"max":1}}"#,
                "name",
                "expected a string",
            ),
        ] {
            let (code, got, message) = fails(json);
            assert_eq!(
                (code, got.as_deref()),
                (Code::InvalidValue, Some(field)),
                "{json}"
            );
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn what_follows_the_object_is_refused_and_nothing_is_not_json() {
        assert_eq!(
            fails(r#"{"name":"a","scale":{"max":1}} x"#).0,
            Code::MalformedBody
        );
        assert_eq!(fails("").0, Code::MalformedBody);
        assert_eq!(fails("[]").0, Code::InvalidValue);
        assert_eq!(fails(r#"["a",{"max":1}]"#).0, Code::InvalidValue);
        assert_eq!(
            fails(r#"{"name":"a","scale":[1]}"#).1.as_deref(),
            Some("scale")
        );
        assert_eq!(fails(&"[".repeat(100_000)).0, Code::InvalidValue);
    }

    #[test]
    fn a_long_value_is_not_sent_back_whole() {
        let (_, _, message) = fails(&format!(
            r#"{{"name":"a","scale":"{}"}}"#,
            "x".repeat(10_000)
        ));
        assert!(message.len() < 1_000, "{}", message.len());
    }
}
