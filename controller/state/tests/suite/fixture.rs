//! A state with a pen: every command gets a fresh write id and the next millisecond.

use coracle_model::{
    BuildOutput, Concurrency, Convention, Digest, Env, FunctionId, FunctionRef, Handler, KeyId,
    Memory, MilliCpu, NamespaceId, Network, Operation, ProjectId, Refusal, Revision, RevisionId,
    RevisionSettings, ScaleBounds, SecretHash, Source, Stage, TaskId, TaskState, Timeout,
    Timestamp, WriteId,
    operation::{
        CreateFunction, CreateKey, CreateNamespace, SettingsPatch, UpdateFunction, UpdateKey,
        UpdateNamespace,
    },
};
use coracle_state::{Applied, Body, Command, Effect, FunctionRecord, State};
use uuid::Uuid;

pub(crate) const P: ProjectId = ProjectId::DEFAULT;

#[derive(Default)]
pub(crate) struct Fixture {
    pub(crate) state: State,
    count: u128,
}

impl Fixture {
    /// With namespaces `a` and `b`.
    pub(crate) fn new() -> Self {
        let mut fixture = Self::default();
        for (n, name) in [(1, "a"), (2, "b")] {
            fixture.done(Operation::CreateNamespace(create_namespace(n, name)));
        }
        fixture
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.count).unwrap())
    }

    pub(crate) fn apply(&mut self, body: Body) -> Applied {
        self.count += 1;
        let write_id = WriteId(Uuid::from_u128(self.count));
        self.state.apply(Command {
            write_id,
            at: self.now(),
            body,
        })
    }

    /// An operation that has to succeed; its effects.
    pub(crate) fn done(&mut self, operation: Operation) -> Vec<Effect> {
        let applied = self.apply(Body::Operation(operation));
        applied.outcome.expect("the operation succeeds");
        applied.effects
    }

    /// An operation that has to be refused, and has to leave everything as it was.
    pub(crate) fn refused(&mut self, operation: Operation) -> Refusal {
        let before = self.state.view();
        let applied = self.apply(Body::Operation(operation));
        assert_eq!(applied.effects, []);
        assert!(before == self.state.view(), "a refusal changed the state");
        applied.outcome.expect_err("the operation is refused")
    }

    /// A step of the leader; its effects.
    pub(crate) fn step(&mut self, body: Body) -> Vec<Effect> {
        let applied = self.apply(body);
        assert_eq!(applied.outcome, Ok(()));
        applied.effects
    }

    /// Makes function `n`, waiting with task `n`.
    pub(crate) fn create(&mut self, n: u128, name: &str) -> FunctionId {
        self.done(Operation::CreateFunction(Box::new(create_function(
            n, name,
        ))));
        FunctionId(Uuid::from_u128(n))
    }

    pub(crate) fn update(&mut self, name: &str, patch: SettingsPatch, task: u128) -> Vec<Effect> {
        let settings = patch;
        let task = Some(task_id(task));
        self.done(change(UpdateFunction {
            settings,
            task,
            ..update(name)
        }))
    }

    /// Takes the latest revision all the way.
    pub(crate) fn run(&mut self, function: FunctionId) -> RevisionId {
        let revision = self.latest(function).id;
        self.step(Body::BeginBuild { revision });
        self.step(Body::FinishBuild {
            revision,
            output: output(&revision.to_string()),
        });
        self.step(Body::Promote { revision });
        revision
    }

    pub(crate) fn record(&self, function: FunctionId) -> &FunctionRecord {
        self.state.function(function).expect("the function exists")
    }

    pub(crate) fn latest(&self, function: FunctionId) -> Revision {
        self.record(function).latest().as_ref().clone()
    }

    pub(crate) fn stage(&self, revision: RevisionId) -> Stage {
        self.state
            .revision(revision)
            .expect("the revision is kept")
            .stage
            .clone()
    }

    pub(crate) fn task(&self, n: u128) -> TaskState {
        self.state
            .task(task_id(n))
            .expect("the task is kept")
            .state
            .clone()
    }
}

pub(crate) fn task_id(n: u128) -> TaskId {
    TaskId(Uuid::from_u128(n))
}

pub(crate) fn env(vars: &[(&str, &str)]) -> Env {
    Env::new(
        vars.iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    )
    .unwrap()
}

/// `name`, or `namespace/name`; the namespace is `a` where none is given.
pub(crate) fn function_ref(name: &str) -> FunctionRef {
    let (namespace, name) = name.split_once('/').unwrap_or(("a", name));
    FunctionRef {
        namespace: namespace.parse().unwrap(),
        name: name.parse().unwrap(),
    }
}

pub(crate) fn create_namespace(n: u128, name: &str) -> CreateNamespace {
    CreateNamespace {
        id: NamespaceId(Uuid::from_u128(n)),
        project: P,
        name: name.parse().unwrap(),
        description: String::new(),
        env: Env::default(),
        task: None,
    }
}

pub(crate) fn update_namespace(name: &str) -> UpdateNamespace {
    let name = name.parse().unwrap();
    UpdateNamespace {
        project: P,
        name,
        description: None,
        env: None,
        task: None,
    }
}

pub(crate) fn settings(code: &str) -> RevisionSettings {
    RevisionSettings {
        runtime: "python3.11".parse().unwrap(),
        runtime_requested: "python3.11".into(),
        handler: Handler::new("main", Convention::Http).unwrap(),
        source: Source::Inline {
            code: Digest::of(code.as_bytes()),
        },
        dependencies: None,
        env: Env::default(),
        memory: Memory::from_mib(128).unwrap(),
        cpu: MilliCpu::new(250).unwrap(),
        timeout: Timeout::from_secs(60).unwrap(),
        init_timeout: Timeout::from_secs(30).unwrap(),
        concurrency: Concurrency::ONE,
        network: Network::Egress,
    }
}

/// A patch of the code alone.
pub(crate) fn code(code: &str) -> SettingsPatch {
    let source = Some(Source::Inline {
        code: Digest::of(code.as_bytes()),
    });
    SettingsPatch {
        source,
        ..SettingsPatch::default()
    }
}

pub(crate) fn output(code: &str) -> BuildOutput {
    let code = Digest::of(format!("built {code}").as_bytes());
    BuildOutput {
        code,
        dependencies: None,
        message: "built".into(),
    }
}

pub(crate) fn create_function(n: u128, name: &str) -> CreateFunction {
    CreateFunction {
        id: FunctionId(Uuid::from_u128(n)),
        project: P,
        function: function_ref(name),
        description: String::new(),
        annotations: [].into(),
        key_required: false,
        keys: vec![],
        disabled: false,
        scale: ScaleBounds::new(0, 10).unwrap(),
        placement: Default::default(),
        settings: settings(name),
        task: Some(task_id(n)),
    }
}

pub(crate) fn update(name: &str) -> UpdateFunction {
    UpdateFunction {
        project: P,
        function: function_ref(name),
        description: None,
        annotations: None,
        key_required: None,
        keys: None,
        disabled: None,
        scale_min: None,
        scale_max: None,
        placement: None,
        settings: SettingsPatch::default(),
        task: None,
    }
}

pub(crate) fn change(update: UpdateFunction) -> Operation {
    Operation::UpdateFunction(Box::new(update))
}

pub(crate) fn delete(name: &str, task: Option<u128>) -> Operation {
    let task = task.map(task_id);
    Operation::DeleteFunction {
        project: P,
        function: function_ref(name),
        task,
    }
}

pub(crate) fn create_key(n: u128, name: &str, functions: &[&str]) -> CreateKey {
    CreateKey {
        id: KeyId(Uuid::from_u128(n)),
        project: P,
        name: name.parse().unwrap(),
        description: String::new(),
        hash: SecretHash::of(name),
        functions: functions.iter().map(|name| function_ref(name)).collect(),
        expires_at: None,
    }
}

pub(crate) fn update_key(name: &str) -> UpdateKey {
    let name = name.parse().unwrap();
    UpdateKey {
        project: P,
        name,
        description: None,
        functions: None,
        expires_at: None,
    }
}
