//! Checks that several operations share, and the words of their refusals.

use std::collections::BTreeMap;

use coracle_model::{
    FunctionRef, Invalid, KeyName, Namespace, NamespaceName, Project, ProjectId, Refusal, TaskId,
    limits,
};

use super::Change;
use crate::FunctionRecord;

impl Change<'_> {
    pub(super) fn project(&self, id: ProjectId) -> Result<&Project, Refusal> {
        self.state
            .view
            .project(id)
            .ok_or_else(|| Refusal::NotFound(format!("project {id}")))
    }

    pub(super) fn namespace(
        &self,
        project: ProjectId,
        name: &NamespaceName,
    ) -> Result<&Namespace, Refusal> {
        self.project(project)?;
        let found = self.state.view.namespace_named(project, name);
        found.ok_or_else(|| Refusal::NotFound(format!("namespace {name}")))
    }

    pub(super) fn function(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<&FunctionRecord, Refusal> {
        self.namespace(project, &function.namespace)?;
        let found = self.state.view.function_named(project, function);
        found.ok_or_else(|| Refusal::NotFound(named(function)))
    }

    /// Tasks are named by the proposer; one id cannot stand for two of them.
    pub(super) fn task_is_free(&self, id: Option<TaskId>) -> Result<(), Refusal> {
        match id {
            Some(id) if self.state.view.tasks.contains(&id) => {
                Err(Refusal::AlreadyExists(format!("task {id}")))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn named(function: &FunctionRef) -> String {
    format!(
        "function {} in namespace {}",
        function.name, function.namespace
    )
}

pub(super) fn key_named(name: &KeyName) -> String {
    format!("key {name}")
}

pub(super) fn description(text: &str) -> Result<(), Refusal> {
    let chars = text.chars().count();
    let most = limits::DESCRIPTION_MAX_CHARS;
    if chars > most {
        let reason = format!("must be at most {most} characters, has {chars}");
        return Err(Invalid::new("description", reason).into());
    }
    Ok(())
}

pub(super) fn annotations(entries: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let total: usize = entries
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let most = limits::ANNOTATIONS_TOTAL_MAX_BYTES;
    if total > most {
        let reason =
            format!("all names and values together must be at most {most} bytes, are {total}");
        return Err(Invalid::new("annotations", reason).into());
    }
    Ok(())
}

/// The beginning of a text that explains a failure, short enough to be kept in replicated state.
/// The proposer shortens too, so that a long one fits into a log entry.
pub fn clip(reason: &str) -> String {
    match reason.char_indices().nth(limits::REASON_MAX_CHARS) {
        None => reason.to_owned(),
        Some(_) => {
            let kept = reason.chars().take(limits::REASON_MAX_CHARS - 1);
            kept.chain(['…']).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_clipped_by_characters() {
        let fits = "ä".repeat(limits::REASON_MAX_CHARS);
        assert_eq!(clip(&fits), fits);
        let clipped = clip(&format!("{fits}x"));
        assert_eq!(clipped.chars().count(), limits::REASON_MAX_CHARS);
        assert!(clipped.ends_with("ä…"));
    }
}
