//! What every handler works with, and the few things that all APIs do in the same way.

use std::{collections::BTreeMap, fmt, sync::Arc};

use coracle_model::{
    Digest, FunctionRef, Invalid, NodeId, Operation, Project, ProjectId, Timestamp, WriteId,
    limits, node::NodeChange, query::FunctionView,
};
use coracle_runtimes::Catalog;

use crate::{
    codes::Code,
    failure::Failure,
    port::{ControlPlane, Environment, PortError, ServerInfo},
};

pub(crate) struct Api {
    pub(crate) port: Arc<dyn ControlPlane>,
    pub(crate) info: ServerInfo,
    pub(crate) env: Arc<dyn Environment>,
    pub(crate) catalog: Catalog,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl Api {
    /// Writes once. `words` translates the model's field names into the caller's. An unknown outcome
    /// is asked again under the same id, which cannot apply twice; what the second asking does not
    /// answer stays unknown, since the first may have been applied.
    pub(crate) async fn write(
        &self,
        operation: Operation,
        words: fn(&str) -> String,
    ) -> Result<(), Failure> {
        let id = WriteId(self.env.fresh_uuid());
        let result = twice(|| self.port.write(id, operation.clone())).await;
        result.map_err(|error| Failure::from_port(error, words))
    }

    /// The same for what is done to a node.
    pub(crate) async fn change_node(
        &self,
        node: NodeId,
        change: NodeChange,
    ) -> Result<(), Failure> {
        let id = WriteId(self.env.fresh_uuid());
        let result = twice(|| self.port.change_node(id, node, change)).await;
        result.map_err(Failure::from)
    }

    pub(crate) async fn project(&self, id: ProjectId) -> Result<Option<Project>, Failure> {
        Ok(self
            .port
            .projects()
            .await?
            .into_iter()
            .find(|project| project.id == id))
    }

    pub(crate) async fn function(
        &self,
        project: ProjectId,
        function: &FunctionRef,
    ) -> Result<FunctionView, Failure> {
        let found = self.port.function(project, function).await?;
        found.ok_or_else(|| missing_function(function))
    }

    /// An artifact that was stored from text. That it is gone or not text is our own fault.
    pub(crate) async fn text(&self, digest: Digest) -> Result<String, Failure> {
        let bytes = self.port.artifact(digest).await?;
        String::from_utf8(bytes.into()).map_err(|_| {
            tracing::error!(%digest, "the artifact of a function's source is not text");
            Failure::new(
                Code::Internal,
                "The server failed; its log has the details.",
            )
        })
    }

    pub(crate) async fn store(&self, text: String) -> Result<Digest, Failure> {
        Ok(self.port.put_artifact(text.into()).await?)
    }

    pub(crate) fn endpoint(&self, view: &FunctionView) -> String {
        format!(
            "{}/fn/{}/{}/{}",
            self.info.public_url, view.project, view.namespace, view.function.name
        )
    }
}

/// Asks again where the outcome is unknown.
async fn twice<F>(mut ask: impl FnMut() -> F) -> Result<(), PortError>
where
    F: Future<Output = Result<(), PortError>>,
{
    match ask().await {
        Err(PortError::Unknown(_)) => match ask().await {
            Err(PortError::Unavailable(detail) | PortError::Internal(detail)) => {
                Err(PortError::Unknown(detail))
            }
            answered => answered,
        },
        other => other,
    }
}

pub(crate) fn missing_function(function: &FunctionRef) -> Failure {
    Failure::not_found(format_args!(
        "function {} in namespace {}",
        function.name, function.namespace
    ))
}

/// Refuses text that is too long, in characters, or too short.
pub(crate) fn check_chars(field: &str, text: &str, min: usize, max: usize) -> Result<(), Invalid> {
    let chars = text.chars().count();
    if (min..=max).contains(&chars) {
        return Ok(());
    }
    let reason = if min == 0 {
        format!("must be at most {max} characters, has {chars}")
    } else {
        format!("must be {min} to {max} characters, has {chars}")
    };
    Err(Invalid::new(field, reason))
}

/// One entry of the log must hold them beside everything else.
pub(crate) fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), Invalid> {
    let total: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if total > limits::ANNOTATIONS_TOTAL_MAX_BYTES {
        return Err(Invalid::new(
            "annotations",
            format_args!(
                "all names and values together must be at most {} bytes, are {total}",
                limits::ANNOTATIONS_TOTAL_MAX_BYTES
            ),
        ));
    }
    Ok(())
}

/// A log line's time, with all nine digits so that lines sort as text.
pub(crate) fn rfc3339_nanos(nanos: u64) -> String {
    let seconds = Timestamp(nanos / 1_000_000_000 * 1_000).rfc3339();
    format!(
        "{}.{:09}Z",
        seconds.trim_end_matches('Z'),
        nanos % 1_000_000_000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_keep_their_zeros() {
        assert_eq!(
            rfc3339_nanos(1_000_000_042),
            "1970-01-01T00:00:01.000000042Z"
        );
        assert_eq!(rfc3339_nanos(0), "1970-01-01T00:00:00.000000000Z");
    }
}
