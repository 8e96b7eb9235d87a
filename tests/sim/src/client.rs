//! Clients of the management API: one operation at a time each, repeated under its id until the
//! outcome is known or the client gives up.

use coracle_model::{
    Concurrency, Convention, Digest, FunctionId, FunctionRef, Handler, Memory, MilliCpu, Network,
    Operation, ProjectId, Refusal, RevisionSettings, ScaleBounds, Source, Timeout, WriteId,
    operation::{CreateFunction, CreateNamespace, SettingsPatch, UpdateFunction},
};
use coracle_state::{Body, View};
use uuid::Uuid;

use crate::linear::{Action, Op, Outcome, Value};

/// How long a client waits for one answer.
pub(crate) fn patience_ms() -> u64 {
    2_000
}

/// What a controller is asked.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Write { write_id: WriteId, body: Box<Body> },
    Read,
}

#[derive(Debug, Clone)]
pub(crate) enum Reply {
    Written(Result<(), Refusal>),
    Value(Value),
    /// Certainly not done by this attempt.
    NotLeader(Option<u64>),
    Busy,
    /// Perhaps done.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) key: u64,
    pub(crate) op: Op,
    pub(crate) attempts: u32,
    /// Some attempt may have been taken.
    pub(crate) doubtful: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) pending: Option<Pending>,
    /// Of the newest message; answers to older ones come too late.
    pub(crate) attempt: u64,
    /// Who answered last, or was named.
    pub(crate) prefers: Option<u64>,
}

pub(crate) fn reference(key: u64) -> FunctionRef {
    FunctionRef {
        namespace: "default".parse().expect("a valid name"),
        name: format!("f{key}").parse().expect("a valid name"),
    }
}

pub(crate) fn namespace() -> Body {
    Body::Operation(Operation::CreateNamespace(CreateNamespace {
        id: Uuid::from_u128(1).into(),
        project: ProjectId::DEFAULT,
        name: "default".parse().expect("a valid name"),
        description: String::new(),
        env: Default::default(),
        task: None,
    }))
}

/// What the operation is in the words of the state machine; `None` for a read.
pub(crate) fn body(key: u64, action: Action) -> Option<Body> {
    let project = ProjectId::DEFAULT;
    let function = reference(key);
    let operation = match action {
        Action::Create { id } => Operation::CreateFunction(Box::new(CreateFunction {
            id: FunctionId(id),
            project,
            function,
            description: "0".to_owned(),
            annotations: Default::default(),
            key_required: false,
            keys: Vec::new(),
            disabled: false,
            scale: ScaleBounds::new(0, 3).expect("in order"),
            placement: Default::default(),
            settings: settings(),
            task: None,
        })),
        Action::Update { version } => Operation::UpdateFunction(Box::new(UpdateFunction {
            project,
            function,
            description: Some(version.to_string()),
            annotations: None,
            key_required: None,
            keys: None,
            placement: None,
            // Each version its own bounds, and every third one another revision.
            disabled: Some(version % 9 == 0),
            scale_min: Some(u32::from(version % 2 == 0)),
            scale_max: Some(u32::try_from(1 + version % 4).expect("small")),
            settings: SettingsPatch {
                timeout: (version % 3 == 0).then(|| seconds(1 + version % 4)),
                ..SettingsPatch::default()
            },
            task: None,
        })),
        Action::Delete => Operation::DeleteFunction {
            project,
            function,
            task: None,
        },
        Action::Read => return None,
    };
    Some(Body::Operation(operation))
}

fn seconds(seconds: u64) -> Timeout {
    let seconds = u32::try_from(seconds).expect("small");
    Timeout::from_secs(seconds).expect("valid")
}

fn settings() -> RevisionSettings {
    RevisionSettings {
        runtime: "python3.11".parse().expect("a valid name"),
        runtime_requested: "python3.11".into(),
        handler: Handler::new("main", Convention::Http).expect("valid"),
        source: Source::Inline {
            code: Digest::of(b"code"),
        },
        dependencies: None,
        env: Default::default(),
        memory: Memory::from_mib(128).expect("valid"),
        cpu: MilliCpu::new(250).expect("valid"),
        timeout: seconds(2),
        init_timeout: seconds(2),
        concurrency: Concurrency::ONE,
        network: Network::None,
    }
}

/// What a name stands for in a view.
pub(crate) fn value(view: &View, key: u64) -> Value {
    let record = view.function_named(ProjectId::DEFAULT, &reference(key))?;
    let version = record.function.description.parse().unwrap_or(u64::MAX);
    Some((record.function.id.0, version))
}

/// What the checker is to make of an answer to a write. `None`: an answer that nobody should get.
pub(crate) fn outcome(answer: &Result<(), Refusal>) -> Option<Outcome> {
    match answer {
        Ok(()) => Some(Outcome::Done),
        Err(Refusal::AlreadyExists(_)) => Some(Outcome::Exists),
        Err(Refusal::NotFound(_)) => Some(Outcome::Missing),
        Err(_) => None,
    }
}
