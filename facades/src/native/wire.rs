//! The native API's JSON. Unknown members are refused, so that a misspelt one is not lost in
//! silence. Ranges are checked by the model, so numbers come in wide.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::body::Object;

/// How the runtime calls the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Convention {
    Kubeless,
    Scaleway,
    Scf,
    Http,
}

/// What an instance can reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Network {
    /// The outside, not other instances or the host.
    Egress,
    /// Nothing.
    None,
}

/// Floor and cap of the number of instances.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScaleChange {
    /// 0 to 50; 0 lets the function sleep.
    pub(crate) min: Option<i64>,
    /// 0 to 50; 0: the function may not run.
    pub(crate) max: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Scale {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

/// What instances are spread over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Spread {
    /// Nodes and zones, where that costs no slow start.
    Auto,
    /// Nodes, before anything else.
    Node,
    /// Zones (the node label `zone`), before anything else.
    Zone,
}

/// On which nodes instances run. Replaces the whole of what was set before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PlacementChange)]
pub(crate) struct PlacementChange {
    /// Labels that a node must have.
    pub(crate) required: Option<BTreeMap<String, String>>,
    /// Labels that a node should rather have.
    pub(crate) preferred: Option<BTreeMap<String, String>>,
    /// `auto` if absent.
    pub(crate) spread: Option<Spread>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Placement)]
pub(crate) struct Placement {
    pub(crate) required: BTreeMap<String, String>,
    pub(crate) preferred: BTreeMap<String, String>,
    pub(crate) spread: Spread,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateFunction)]
pub(crate) struct CreateFunction {
    /// 1 to 63 of a-z, 0-9 and '-', from a letter on, not ending with '-'.
    pub(crate) name: String,
    /// An installed runtime, or another name that one of them serves (`GET /api/v1/runtimes`).
    pub(crate) runtime: String,
    /// `function`, or `module.function`.
    pub(crate) handler: String,
    /// The source of one file: 1 to 100,000 characters.
    pub(crate) code: String,
    /// `http` if absent.
    pub(crate) convention: Option<Convention>,
    pub(crate) description: Option<String>,
    /// The text of requirements.txt or package.json, up to 100,000 characters.
    pub(crate) dependencies: Option<String>,
    pub(crate) env: Option<BTreeMap<String, String>>,
    /// 128 if absent.
    pub(crate) memory_mib: Option<i64>,
    /// Thousandths of a core; 250 if absent.
    pub(crate) cpu_millis: Option<i64>,
    /// Limit of one request; 60 if absent.
    pub(crate) timeout_seconds: Option<i64>,
    /// Limit of one cold start; 30 if absent.
    pub(crate) init_timeout_seconds: Option<i64>,
    /// Requests at once in one instance; 1 if absent.
    pub(crate) concurrency: Option<i64>,
    /// `egress` if absent.
    pub(crate) network: Option<Network>,
    /// 0 and 10 if absent.
    #[schema(value_type = Option<ScaleChange>)]
    pub(crate) scale: Option<Object<ScaleChange>>,
    #[schema(value_type = Option<PlacementChange>)]
    pub(crate) placement: Option<Object<PlacementChange>>,
    /// Calls must present a live key that is bound to the function.
    pub(crate) key_required: Option<bool>,
    /// Names of keys to bind.
    pub(crate) keys: Option<Vec<String>>,
    /// No instances, and calls are refused.
    pub(crate) disabled: Option<bool>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// Absent and null leave a field as it is; for `dependencies` null takes them away.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PatchFunction)]
pub(crate) struct PatchFunction {
    pub(crate) description: Option<String>,
    pub(crate) handler: Option<String>,
    pub(crate) convention: Option<Convention>,
    pub(crate) code: Option<String>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub(crate) dependencies: Option<Option<String>>,
    pub(crate) env: Option<BTreeMap<String, String>>,
    pub(crate) memory_mib: Option<i64>,
    pub(crate) cpu_millis: Option<i64>,
    pub(crate) timeout_seconds: Option<i64>,
    pub(crate) init_timeout_seconds: Option<i64>,
    pub(crate) concurrency: Option<i64>,
    pub(crate) network: Option<Network>,
    #[schema(value_type = Option<ScaleChange>)]
    pub(crate) scale: Option<Object<ScaleChange>>,
    #[schema(value_type = Option<PlacementChange>)]
    pub(crate) placement: Option<Object<PlacementChange>>,
    pub(crate) key_required: Option<bool>,
    pub(crate) keys: Option<Vec<String>>,
    pub(crate) disabled: Option<bool>,
    pub(crate) annotations: Option<BTreeMap<String, String>>,
    /// Cannot be changed; accepted when it says what is.
    pub(crate) name: Option<String>,
    /// Cannot be changed; accepted when it says what is.
    pub(crate) runtime: Option<String>,
}

/// Tells null from absent.
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// A function as its newest revision has it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Function)]
pub(crate) struct Function {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) project: String,
    pub(crate) description: String,
    /// As installed.
    pub(crate) runtime: String,
    pub(crate) handler: String,
    pub(crate) convention: Convention,
    /// Absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) code: Option<String>,
    /// Absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dependencies: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) memory_mib: u32,
    pub(crate) cpu_millis: u32,
    pub(crate) timeout_seconds: u32,
    pub(crate) init_timeout_seconds: u32,
    pub(crate) concurrency: u32,
    pub(crate) network: Network,
    pub(crate) scale: Scale,
    pub(crate) placement: Placement,
    pub(crate) key_required: bool,
    pub(crate) keys: Vec<String>,
    pub(crate) disabled: bool,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) revision: Revision,
    /// The revision that answers calls; null until the first one runs.
    pub(crate) serving_revision: Option<u32>,
    pub(crate) instances: InstanceCount,
    pub(crate) endpoint: String,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Revision)]
pub(crate) struct Revision {
    pub(crate) number: u32,
    /// received, building, deploying, running, build_failed, deploy_failed or abandoned.
    pub(crate) stage: String,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// What the build did.
    pub(crate) message: Option<String>,
    /// The runtime in the words of whoever created the function.
    pub(crate) runtime_requested: String,
    pub(crate) created_at: String,
}

/// May be a few seconds old.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct InstanceCount {
    pub(crate) wanted: u32,
    pub(crate) ready: u32,
}

/// One running copy, as the controller last heard of it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Instance)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) revision: u32,
    pub(crate) node: String,
    /// starting, ready, draining or exited.
    pub(crate) state: String,
    /// Why it exited.
    pub(crate) reason: Option<String>,
    pub(crate) since: String,
    /// Why it runs on this node.
    pub(crate) placement: String,
}

/// One decision of the autoscaler.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Decision)]
pub(crate) struct Decision {
    pub(crate) at: String,
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) reason: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Exit)]
pub(crate) struct Exit {
    pub(crate) at: String,
    pub(crate) instance: String,
    pub(crate) revision: u32,
    pub(crate) reason: String,
    /// When the next start is allowed, while backing off.
    pub(crate) retry_at: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Description {
    pub(crate) function: Function,
    pub(crate) instances: Vec<Instance>,
    pub(crate) decisions: Vec<Decision>,
    /// The last failures, newest first.
    pub(crate) exits: Vec<Exit>,
    /// Why there are fewer instances than wanted, while there are.
    pub(crate) shortage: Option<String>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateNamespace)]
pub(crate) struct CreateNamespace {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// Laid under the variables of each function.
    pub(crate) env: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PatchNamespace)]
pub(crate) struct PatchNamespace {
    pub(crate) description: Option<String>,
    pub(crate) env: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Namespace)]
pub(crate) struct Namespace {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) project: String,
    pub(crate) description: String,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) created_at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyFunction {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateKey)]
pub(crate) struct CreateKey {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    #[schema(value_type = Option<Vec<KeyFunction>>)]
    pub(crate) functions: Option<Vec<Object<KeyFunction>>>,
    pub(crate) expires_at: Option<String>,
}

/// Absent leaves a field as it is; for `expires_at` null makes the key live for ever.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PatchKey)]
pub(crate) struct PatchKey {
    pub(crate) description: Option<String>,
    #[schema(value_type = Option<Vec<KeyFunction>>)]
    pub(crate) functions: Option<Vec<Object<KeyFunction>>>,
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    pub(crate) expires_at: Option<Option<String>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Key)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) project: String,
    pub(crate) description: String,
    pub(crate) functions: Vec<KeyFunction>,
    pub(crate) expires_at: Option<String>,
    /// Not yet expired.
    pub(crate) live: bool,
    pub(crate) created_at: String,
    /// In the answer to create only; callers send it as `X-API-Key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<String>,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateProject)]
pub(crate) struct CreateProject {
    pub(crate) name: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Project)]
pub(crate) struct Project {
    /// What Gcore's clients put into their paths.
    pub(crate) id: u32,
    pub(crate) name: String,
    pub(crate) created_at: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Everything, in every project.
    Admin,
    /// Everything inside one project.
    Project,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateToken)]
pub(crate) struct CreateToken {
    pub(crate) role: Role,
    /// Name of the project; needed for the role `project` and refused for `admin`.
    pub(crate) project: Option<String>,
    pub(crate) description: Option<String>,
    pub(crate) expires_at: Option<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Token)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) description: String,
    pub(crate) role: Role,
    /// Null for administrators, and when the project is gone.
    pub(crate) project: Option<String>,
    pub(crate) expires_at: Option<String>,
    pub(crate) created_at: String,
    /// `<id>$<secret>`, in the answer to create only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Amounts {
    pub(crate) memory_mib: u32,
    pub(crate) cpu_millis: u32,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Node)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) name: String,
    /// ready, cordoned, draining, drained, silent (its instances count as alive) or lost.
    pub(crate) state: String,
    pub(crate) version: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) address: String,
    /// Not lost.
    pub(crate) alive: bool,
    /// Takes new instances.
    pub(crate) schedulable: bool,
    pub(crate) cordoned: bool,
    /// While it drains, and until it is opened again.
    pub(crate) drain: Option<Drain>,
    pub(crate) allocatable: Amounts,
    pub(crate) used: Amounts,
    /// How many should be there.
    pub(crate) instances: u32,
    /// How many there are, as its agent said last.
    pub(crate) running: u32,
    pub(crate) builds: u32,
    /// Containers that wait for a function, by runtime.
    pub(crate) stems: BTreeMap<String, u32>,
    /// Runtimes whose image is there.
    pub(crate) images: Vec<String>,
    /// When its agent was last heard; null until a new leader has heard it.
    pub(crate) reported_at: Option<String>,
    pub(crate) joined_at: Option<String>,
    /// Its instances; absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) placed: Option<Vec<NodeInstance>>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Drain {
    pub(crate) since: String,
    pub(crate) deadline: Option<String>,
    /// What is left at the deadline is ended.
    pub(crate) force: bool,
    /// What it waits for: a function each, with the reason.
    pub(crate) waiting: Vec<String>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = NodeInstance)]
pub(crate) struct NodeInstance {
    pub(crate) project: String,
    pub(crate) namespace: String,
    pub(crate) function: String,
    #[serde(flatten)]
    pub(crate) instance: Instance,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DrainNode)]
pub(crate) struct DrainNode {
    /// By when it should be over; what that means is up to `force`.
    pub(crate) deadline_seconds: Option<i64>,
    /// End what is left at the deadline, or at once where none is given, although nothing replaces
    /// it yet; and drain also the last node that can hold a function with a minimum.
    pub(crate) force: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RemoveNode)]
pub(crate) struct RemoveNode {
    /// Also while it runs instances, which end.
    pub(crate) force: Option<bool>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Runtime)]
pub(crate) struct Runtime {
    pub(crate) name: String,
    pub(crate) language: String,
    pub(crate) version: String,
    pub(crate) title: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Version {
    pub(crate) version: String,
    /// Where functions are called.
    pub(crate) public_url: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LogLine {
    pub(crate) time: String,
    pub(crate) instance: String,
    /// stdout, stderr or platform.
    pub(crate) stream: String,
    pub(crate) request_id: Option<String>,
    pub(crate) message: String,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LogLines {
    pub(crate) lines: Vec<LogLine>,
}

/// A page of a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct List<T> {
    /// How many there are in all that match.
    pub(crate) count: usize,
    pub(crate) items: Vec<T>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(crate) struct Cluster {
    pub(crate) id: String,
    /// As `--ca-hash` takes it; null for a server by itself.
    pub(crate) ca_hash: Option<String>,
    /// Counts the cluster keys; 0 for a server by itself.
    pub(crate) key_generation: u64,
    /// The controller that gave this answer.
    pub(crate) answered_by: u64,
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) applied: u64,
    pub(crate) last_index: u64,
    pub(crate) incarnation: u64,
    pub(crate) members: Vec<Member>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Member)]
pub(crate) struct Member {
    pub(crate) id: u64,
    /// Null for a server by itself.
    pub(crate) name: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) joined_at: Option<String>,
    pub(crate) standing: Standing,
    pub(crate) leader: bool,
    /// Up to here its log is the leader's; this and the next two are known to the leader only.
    pub(crate) matched: Option<u64>,
    /// It was heard from lately.
    pub(crate) active: Option<bool>,
    pub(crate) receiving_snapshot: Option<bool>,
}

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It waits to be added to the group, or was taken out.
    Outside,
    /// It receives everything and counts for no majority.
    Learner,
    Voter,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Transfer)]
pub(crate) struct Transfer {
    /// To whom; any that has caught up if absent.
    pub(crate) member: Option<u64>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Leader)]
pub(crate) struct Leader {
    pub(crate) leader: u64,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = KeyGeneration)]
pub(crate) struct KeyGeneration {
    pub(crate) key_generation: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ComponentRole {
    Controller,
    Agent,
    Gateway,
}

#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateJoinToken)]
pub(crate) struct CreateJoinToken {
    pub(crate) role: ComponentRole,
    /// 3600 if absent; at most a year.
    pub(crate) ttl_seconds: Option<u64>,
    /// How many machines it lets in; 1 if absent.
    pub(crate) uses: Option<u32>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = JoinToken)]
pub(crate) struct JoinToken {
    pub(crate) id: String,
    pub(crate) role: ComponentRole,
    pub(crate) expires_at: String,
    pub(crate) uses_left: u32,
    pub(crate) created_at: String,
    /// It lets somebody in.
    pub(crate) live: bool,
    /// `<id>$<secret>`; this and the next two in the answer to create only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_hash: Option<String>,
    /// Where the controllers are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) controllers: Option<Vec<String>>,
}
