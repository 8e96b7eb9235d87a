//! Labels of nodes, and what asks for them.

use std::{collections::BTreeMap, ops::Deref};

use serde::{Deserialize, Serialize};

use crate::{error::Invalid, limits};

/// Keys with values, few and short, so that they fit beside everything else into a log entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    try_from = "BTreeMap<String, String>",
    into = "BTreeMap<String, String>"
)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    pub fn new(labels: BTreeMap<String, String>) -> Result<Self, Invalid> {
        if labels.len() > limits::LABELS_MAX {
            let reason = format!(
                "must be at most {} labels, are {}",
                limits::LABELS_MAX,
                labels.len()
            );
            return Err(Invalid::new("labels", reason));
        }
        let total: usize = labels
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        if total > limits::LABELS_TOTAL_MAX_BYTES {
            let reason = format!(
                "all keys and values together must be at most {} bytes, are {total}",
                limits::LABELS_TOTAL_MAX_BYTES
            );
            return Err(Invalid::new("labels", reason));
        }
        for (key, value) in &labels {
            let good_key = !key.is_empty() && is_part(key, b"-_./");
            if !good_key || !is_part(value, b"-_.") {
                return Err(Invalid::new(
                    format!("labels.{key}"),
                    format_args!(
                        "keys are 1 and values 0 to {} characters of a-z, A-Z, 0-9, '-', '_' and \
                         '.'; keys may hold '/' too",
                        limits::LABEL_PART_MAX
                    ),
                ));
            }
        }
        Ok(Self(labels))
    }

    /// How many of these `node` has with the same value.
    pub fn count_in(&self, node: &BTreeMap<String, String>) -> usize {
        let same = self
            .0
            .iter()
            .filter(|(key, value)| node.get(*key) == Some(*value));
        same.count()
    }

    /// Whether `node` has every one of these with the same value.
    pub fn all_in(&self, node: &BTreeMap<String, String>) -> bool {
        self.0
            .iter()
            .all(|(key, value)| node.get(key) == Some(value))
    }
}

/// Where a function's instances go. Changes without a new revision: what runs stays where it is
/// until it is moved for another reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRules {
    /// Only on nodes that have all of these.
    pub required: Labels,
    /// Rather on nodes that have more of these.
    pub preferred: Labels,
    pub spread: Spread,
}

impl PlacementRules {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Over nodes and zones where that costs no slow start.
    #[default]
    Auto,
    /// Over nodes before anything else.
    Node,
    /// Over zones (the label `zone`) before anything else, and over nodes within them.
    Zone,
}

fn is_part(text: &str, also: &[u8]) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || also.contains(&b);
    text.len() <= limits::LABEL_PART_MAX && text.bytes().all(ok)
}

impl TryFrom<BTreeMap<String, String>> for Labels {
    type Error = Invalid;
    fn try_from(labels: BTreeMap<String, String>) -> Result<Self, Invalid> {
        Self::new(labels)
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(value: Labels) -> Self {
        value.0
    }
}

impl Deref for Labels {
    type Target = BTreeMap<String, String>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Result<Labels, Invalid> {
        Labels::new([(key.to_owned(), value.to_owned())].into())
    }

    #[test]
    fn keys_and_values_are_short_words() {
        for (key, value) in [("zone", "eu-1.a"), ("example.com/disk", "ssd"), ("gpu", "")] {
            assert!(one(key, value).is_ok(), "{key}={value}");
        }
        let long = "x".repeat(limits::LABEL_PART_MAX + 1);
        for (key, value) in [
            ("", "a"),
            ("a b", "c"),
            ("a", "b/c"),
            (&long, ""),
            ("a", &long),
        ] {
            assert_eq!(one(key, value).unwrap_err().field, format!("labels.{key}"));
        }
        let many = (0..=limits::LABELS_MAX).map(|n| (n.to_string(), String::new()));
        assert_eq!(Labels::new(many.collect()).unwrap_err().field, "labels");
    }

    #[test]
    fn a_selector_matches_when_every_label_is_there_with_its_value() {
        let node = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        assert!(Labels::default().all_in(&node));
        assert!(one("zone", "a").unwrap().all_in(&node));
        assert!(!one("zone", "b").unwrap().all_in(&node));
        assert!(!one("disk", "").unwrap().all_in(&node));
    }
}
