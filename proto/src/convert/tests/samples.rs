//! One value of each kind with every field set to something that is not its default.

use std::collections::BTreeMap;

use coracle_model::{
    BuildOutput, ComponentRole, Concurrency, Convention, Digest, Env, ExitReason, Function,
    FunctionId, FunctionKey, FunctionRef, Handler, InstanceId, InstanceSpec, InstanceState,
    JoinToken, KeyId, Labels, LogLine, LogStream, Member, MemberId, Memory, MilliCpu, Namespace,
    NamespaceId, Network, NodeId, PlacementRules, Project, ProjectId, Revision, RevisionId,
    RevisionSettings, RuntimeName, ScaleBounds, SecretHash, Source, Spread, Stage, Stamp, Task,
    TaskId, TaskState, Timeout, Timestamp, Token, TokenId, TokenRole,
    cluster::{Admission, ClusterSecrets},
    node::{Node, NodeDrain, NodeRecord, NodeState, Resources},
    query::{Decision, ExitRecord, FunctionView, InstanceView, NodeInstance, NodeView},
    task::{TaskSubject, TaskVerb},
};
use uuid::Uuid;

pub(super) fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(super) fn digest() -> Digest {
    Digest::of(b"code")
}

pub(super) fn revision_id() -> RevisionId {
    RevisionId {
        function: FunctionId(uuid(1)),
        number: 3,
    }
}

pub(super) fn function_ref() -> FunctionRef {
    FunctionRef {
        namespace: "demo".parse().unwrap(),
        name: "hello".parse().unwrap(),
    }
}

pub(super) fn env() -> Env {
    Env::new(
        [
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), String::new()),
        ]
        .into(),
    )
    .unwrap()
}

/// As large as the namespace's and the function's variables can be together.
pub(super) fn largest_instance_env() -> Env {
    let half = |prefix: char| {
        let var = |n| (format!("{prefix}{n:0>3}"), "x".repeat(252));
        Env::new((0..128).map(var).collect()).unwrap()
    };
    half('A').overlaid(&half('B'))
}

pub(super) fn annotations() -> BTreeMap<String, String> {
    [("gcore/flavor".to_owned(), "64m-64MB".to_owned())].into()
}

pub(super) fn handler() -> Handler {
    Handler::new("app.main", Convention::Kubeless).unwrap()
}

pub(super) fn settings() -> RevisionSettings {
    RevisionSettings {
        runtime: "python3.11".parse().unwrap(),
        runtime_requested: "python3.7.12".into(),
        handler: handler(),
        source: Source::Inline { code: digest() },
        dependencies: Some(Digest::of(b"requirements")),
        env: env(),
        memory: Memory::from_mib(128).unwrap(),
        cpu: MilliCpu::new(250).unwrap(),
        timeout: Timeout::from_secs(60).unwrap(),
        init_timeout: Timeout::from_secs(30).unwrap(),
        concurrency: Concurrency::new(2).unwrap(),
        network: Network::Egress,
    }
}

pub(super) fn build() -> BuildOutput {
    BuildOutput {
        code: digest(),
        dependencies: Some(Digest::of(b"deps")),
        message: "built".into(),
    }
}

pub(super) fn revision() -> Revision {
    Revision {
        id: revision_id(),
        settings: settings(),
        instance_env: largest_instance_env(),
        stage: Stage::DeployFailed {
            reason: "it exits".into(),
        },
        build: Some(build()),
        created_at: Timestamp(4),
        updated_at: Timestamp(5),
    }
}

pub(super) fn placement() -> PlacementRules {
    let one =
        |key: &str, value: &str| Labels::new([(key.to_owned(), value.to_owned())].into()).unwrap();
    PlacementRules {
        required: one("disk", "ssd"),
        preferred: one("zone", "a"),
        spread: Spread::Zone,
    }
}

pub(super) fn function() -> Function {
    Function {
        id: FunctionId(uuid(1)),
        project: ProjectId(7),
        namespace: NamespaceId(uuid(2)),
        name: "hello".parse().unwrap(),
        description: "says hello".into(),
        annotations: annotations(),
        key_required: true,
        disabled: true,
        scale: ScaleBounds::new(1, 5).unwrap(),
        placement: placement(),
        latest: revision_id(),
        serving: Some(RevisionId {
            number: 2,
            ..revision_id()
        }),
        created_at: Timestamp(1),
        updated_at: Timestamp(2),
    }
}

pub(super) fn project() -> Project {
    Project {
        id: ProjectId(7),
        name: "team".parse().unwrap(),
        created_at: Timestamp(9),
    }
}

pub(super) fn namespace() -> Namespace {
    Namespace {
        id: NamespaceId(uuid(2)),
        project: ProjectId(7),
        name: "demo".parse().unwrap(),
        description: "a place".into(),
        env: env(),
        created_at: Timestamp(3),
    }
}

pub(super) fn key() -> FunctionKey {
    FunctionKey {
        id: KeyId(uuid(3)),
        project: ProjectId(7),
        name: "ci".parse().unwrap(),
        description: "for the pipeline".into(),
        hash: SecretHash::of("secret"),
        functions: vec![function_ref()],
        expires_at: Some(Timestamp(99)),
        created_at: Timestamp(3),
    }
}

pub(super) fn token() -> Token {
    Token {
        id: TokenId(uuid(4)),
        description: "admin".into(),
        hash: SecretHash::of("secret"),
        role: TokenRole::Project(ProjectId(7)),
        expires_at: Some(Timestamp(98)),
        created_at: Timestamp(3),
    }
}

pub(super) fn subject() -> TaskSubject {
    TaskSubject::Function {
        namespace: "demo".into(),
        name: "hello".into(),
        id: "1".into(),
    }
}

pub(super) fn task() -> Task {
    Task {
        id: TaskId(uuid(5)),
        project: ProjectId(7),
        verb: TaskVerb::Update,
        subject: subject(),
        revision: Some(revision_id()),
        state: TaskState::Error("no".into()),
        acknowledged_at: Some(Timestamp(14)),
        created_at: Timestamp(11),
        updated_at: Timestamp(12),
        finished_at: Some(Timestamp(13)),
    }
}

pub(super) fn stamp() -> Stamp {
    Stamp {
        incarnation: 1,
        term: 2,
        sequence: 3,
    }
}

pub(super) fn node() -> Node {
    let runtime: RuntimeName = "python3.11".parse().unwrap();
    Node {
        id: NodeId(uuid(6)),
        name: "one".into(),
        version: "0.1.0".into(),
        labels: [("zone".to_owned(), "a".to_owned())].into(),
        allocatable: Resources {
            memory_mib: 2048,
            cpu_millis: 2000,
        },
        address: "memory:".into(),
        stems: [(runtime.clone(), 4)].into(),
        images: vec![runtime],
        reported_at: Timestamp(20),
        schedulable: true,
    }
}

pub(super) fn node_record() -> NodeRecord {
    let labels = [("zone".to_owned(), "a".to_owned())];
    NodeRecord {
        id: NodeId(uuid(6)),
        name: "one.example.com".parse().unwrap(),
        labels: Labels::new(labels.into()).unwrap(),
        cordoned: true,
        draining: Some(NodeDrain {
            since: Timestamp(21),
            deadline: Some(Timestamp(22)),
            force: true,
        }),
        joined_at: Timestamp(19),
    }
}

pub(super) fn node_view() -> NodeView {
    NodeView {
        node: node(),
        state: NodeState::Draining,
        cordoned: true,
        draining: node_record().draining,
        used: Resources {
            memory_mib: 128,
            cpu_millis: 250,
        },
        instances: 2,
        running: 3,
        builds: 1,
        heard_at: Some(Timestamp(23)),
        joined_at: Some(Timestamp(19)),
        waiting: vec!["default/hello: no room".into()],
        placed: vec![NodeInstance {
            instance: instance_view(),
            project: "team".into(),
            namespace: "demo".into(),
            function: "hello".into(),
        }],
    }
}

pub(super) fn instance_spec() -> InstanceSpec {
    InstanceSpec {
        id: InstanceId(uuid(8)),
        revision: revision_id(),
        project: "team".parse().unwrap(),
        namespace: "demo".parse().unwrap(),
        function: "hello".parse().unwrap(),
        runtime: "python3.11".parse().unwrap(),
        handler: handler(),
        env: largest_instance_env(),
        memory: Memory::from_mib(128).unwrap(),
        cpu: MilliCpu::new(250).unwrap(),
        concurrency: Concurrency::ONE,
        network: Network::None,
        timeout: Timeout::from_secs(60).unwrap(),
        init_timeout: Timeout::from_secs(30).unwrap(),
        code: digest(),
        dependencies: Some(Digest::of(b"deps")),
    }
}

pub(super) fn exit_reasons() -> Vec<ExitReason> {
    vec![
        ExitReason::Stopped,
        ExitReason::TimedOut,
        ExitReason::OutOfMemory { limit_mib: 64 },
        ExitReason::Exited { code: -1 },
        ExitReason::Signaled { signal: 9 },
        ExitReason::InitFailed {
            message: "no module".into(),
        },
        ExitReason::InitTimedOut { seconds: 30 },
        ExitReason::LaunchFailed {
            message: "no image".into(),
        },
        ExitReason::Lost,
    ]
}

pub(super) fn log_line() -> LogLine {
    LogLine {
        at_nanos: 77,
        instance: InstanceId(uuid(8)),
        stream: LogStream::Stderr,
        request: Some("r".into()),
        message: "hello".into(),
    }
}

pub(super) fn function_view() -> FunctionView {
    FunctionView {
        function: function(),
        namespace: "demo".parse().unwrap(),
        project: "team".parse().unwrap(),
        latest: revision(),
        serving: Some(revision()),
        keys: vec!["ci".parse().unwrap()],
        wanted: 2,
        ready: 1,
    }
}

pub(super) fn instance_view() -> InstanceView {
    InstanceView {
        id: InstanceId(uuid(8)),
        revision: revision_id(),
        node: NodeId(uuid(6)),
        state: InstanceState::Exited(ExitReason::Lost),
        since: Timestamp(30),
        placement: "most free memory".into(),
    }
}

pub(super) fn decision() -> Decision {
    Decision {
        at: Timestamp(31),
        from: 1,
        to: 2,
        reason: "3 in flight".into(),
    }
}

pub(super) fn exit_record() -> ExitRecord {
    ExitRecord {
        at: Timestamp(32),
        instance: InstanceId(uuid(8)),
        revision: revision_id(),
        reason: ExitReason::Exited { code: 1 },
        retry_at: Some(Timestamp(33)),
    }
}

pub(super) fn join_token() -> JoinToken {
    JoinToken {
        id: TokenId(uuid(4)),
        hash: SecretHash::of("secret"),
        role: ComponentRole::Agent,
        expires_at: Timestamp(9),
        uses_left: 3,
        created_at: Timestamp(1),
    }
}

pub(super) fn member() -> Member {
    Member {
        id: MemberId(3),
        name: "c3".into(),
        address: "10.0.0.3:7000".into(),
        wrapping_key: [3; 32],
        joined_at: Timestamp(7),
    }
}

pub(super) fn secrets() -> ClusterSecrets {
    ClusterSecrets {
        ca_certificate: vec![1],
        ca_key: vec![2],
        generation: 2,
        wrapped: [(MemberId(1), vec![1]), (MemberId(3), vec![3])].into(),
    }
}

pub(super) fn admission() -> Admission {
    Admission::Controller {
        name: "c3".into(),
        address: "10.0.0.3:7000".into(),
        wrapping_key: [3; 32],
        wrapped: vec![3],
        generation: 1,
        replaces: Some(MemberId(2)),
    }
}
