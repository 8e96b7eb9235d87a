//! Gcore's JSON: what clients send and read. Unknown members are ignored, as Gcore does, since
//! clients of other versions send some.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::body::Object;

/// Ranges are checked in [`super::map`], so numbers come in wide.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CreateFunction {
    pub(crate) name: String,
    pub(crate) runtime: String,
    pub(crate) timeout: i64,
    pub(crate) flavor: String,
    pub(crate) autoscaling: Object<Autoscaling>,
    pub(crate) code_text: String,
    pub(crate) main_method: String,
    pub(crate) dependencies: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) enable_api_key: Option<bool>,
    pub(crate) envs: Option<BTreeMap<String, String>>,
    /// Sent by the Go library and Terraform although the document no longer names it; so is the
    /// next one.
    pub(crate) keys: Option<Vec<String>>,
    pub(crate) disabled: Option<bool>,
}

/// Both members are needed to create; an update may bring one, or none.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Autoscaling {
    pub(crate) min_instances: Option<i64>,
    pub(crate) max_instances: Option<i64>,
}

/// Null and absent both leave a field as it is.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct PatchFunction {
    /// Immutable: accepted when it says what is.
    pub(crate) name: Option<String>,
    /// Immutable: accepted when it says what is.
    pub(crate) runtime: Option<String>,
    pub(crate) timeout: Option<i64>,
    pub(crate) flavor: Option<String>,
    pub(crate) autoscaling: Option<Object<Autoscaling>>,
    pub(crate) code_text: Option<String>,
    pub(crate) main_method: Option<String>,
    pub(crate) dependencies: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) enable_api_key: Option<bool>,
    pub(crate) envs: Option<BTreeMap<String, String>>,
    pub(crate) keys: Option<Vec<String>>,
    pub(crate) disabled: Option<bool>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Function {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) runtime: String,
    pub(crate) flavor: String,
    pub(crate) timeout: u32,
    pub(crate) autoscaling: AutoscalingView,
    pub(crate) code_text: String,
    pub(crate) main_method: String,
    pub(crate) dependencies: String,
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) enable_api_key: Option<bool>,
    pub(crate) keys: Vec<String>,
    pub(crate) disabled: bool,
    pub(crate) endpoint: String,
    pub(crate) build_status: &'static str,
    pub(crate) build_message: String,
    pub(crate) status: &'static str,
    pub(crate) deploy_status: DeployStatus,
    pub(crate) created_at: String,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct AutoscalingView {
    pub(crate) min_instances: u32,
    pub(crate) max_instances: u32,
}

/// The Go library reads `total` and `ready`, the document's sample has `deployed`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DeployStatus {
    pub(crate) total: u32,
    pub(crate) ready: u32,
    pub(crate) deployed: u32,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CreateNamespace {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) envs: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct PatchNamespace {
    /// Immutable: accepted when it says what is.
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) envs: Option<BTreeMap<String, String>>,
}

/// Without `functions`, which is streamed behind it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NamespaceHead {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) status: &'static str,
    pub(crate) created_at: String,
    pub(crate) functions_deploy_status: DeployStatus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyFunction {
    pub(crate) name: String,
    pub(crate) namespace: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct CreateKey {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// The Go library omits it when empty.
    pub(crate) functions: Option<Vec<Object<KeyFunction>>>,
    pub(crate) expire: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct PatchKey {
    /// Immutable: accepted when it says what is.
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) functions: Option<Vec<Object<KeyFunction>>>,
    /// Here null says something: the key no longer expires.
    #[serde(default, deserialize_with = "present")]
    pub(crate) expire: Option<Option<String>>,
}

/// Tells null from absent.
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) functions: Vec<KeyFunction>,
    pub(crate) expire: Option<String>,
    pub(crate) created_at: String,
    pub(crate) status: &'static str,
    /// In the answer to create only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Flavor {
    pub(crate) name: String,
    pub(crate) cpu: u32,
    pub(crate) ram: u32,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct LogEntry {
    #[serde(rename = "Message")]
    pub(crate) message: String,
    #[serde(rename = "Pod")]
    pub(crate) pod: String,
    #[serde(rename = "Time")]
    pub(crate) time: String,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Logs {
    pub(crate) logs: Vec<LogEntry>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Tasks {
    pub(crate) tasks: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct List<T> {
    pub(crate) count: usize,
    pub(crate) results: Vec<T>,
}

/// Numbers of users and clients are always 0: there are tokens here, not people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) task_type: String,
    pub(crate) state: &'static str,
    pub(crate) created_on: String,
    pub(crate) updated_on: String,
    pub(crate) finished_on: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) created_resources: BTreeMap<&'static str, Vec<String>>,
    pub(crate) project_id: u32,
    pub(crate) region_id: u32,
    pub(crate) user_id: u32,
    pub(crate) client_id: u32,
    pub(crate) user_client_id: u32,
    pub(crate) request_id: Option<String>,
    pub(crate) data: Option<BTreeMap<&'static str, String>>,
    pub(crate) detailed_state: Option<String>,
    pub(crate) acknowledged_at: Option<String>,
    pub(crate) acknowledged_by: Option<u32>,
    pub(crate) job_id: Option<String>,
    pub(crate) schedule_id: Option<String>,
    pub(crate) lifecycle_policy_id: Option<u32>,
}
