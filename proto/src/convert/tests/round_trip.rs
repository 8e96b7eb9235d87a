use coracle_model::{
    BuildOutput, ComponentRole, Convention, Env, Function, FunctionKey, Handler, InstanceSpec,
    InstanceState, Invalid, JoinToken, LogLine, LogStream, Network, Operation, PlacementRules,
    ProjectId, Refusal, Revision, RevisionSettings, ScaleBounds, Spread, Stage, Stamp, Task,
    TaskId, TaskState, Timestamp, Token, TokenId, TokenRole,
    cluster::Admission,
    node::{Node, NodeChange, NodeRecord, NodeState, Resources},
    operation::{SettingsPatch, UpdateFunction, UpdateKey, UpdateNamespace},
    query::{ExitRecord, FunctionRuntimeView, FunctionView, NodeView},
    task::{TaskSubject, TaskVerb},
};

use super::{comes_back, sample_operations as o, samples as s};
use crate::v1;

#[test]
fn tenancy_and_access() {
    comes_back::<v1::Project, _>(s::project());
    comes_back::<v1::Namespace, _>(s::namespace());
    comes_back::<v1::FunctionRef, _>(s::function_ref());
    comes_back::<v1::FunctionKey, _>(s::key());
    comes_back::<v1::FunctionKey, _>(FunctionKey {
        functions: vec![],
        expires_at: None,
        ..s::key()
    });
    comes_back::<v1::Token, _>(s::token());
    comes_back::<v1::Token, _>(Token {
        role: TokenRole::Admin,
        expires_at: None,
        ..s::token()
    });
}

#[test]
fn clusters() {
    for role in ComponentRole::ALL {
        comes_back::<v1::JoinToken, _>(JoinToken {
            role,
            ..s::join_token()
        });
    }
    comes_back::<v1::Member, _>(s::member());
    comes_back::<v1::ClusterSecrets, _>(s::secrets());
    for admission in [Admission::Agent, Admission::Gateway, s::admission()] {
        comes_back::<v1::Admission, _>(admission);
    }
}

#[test]
fn settings() {
    comes_back::<v1::Env, _>(s::env());
    comes_back::<v1::Env, _>(Env::default());
    comes_back::<v1::ScaleBounds, _>(ScaleBounds::new(0, 50).unwrap());
    for convention in [
        Convention::Kubeless,
        Convention::Scaleway,
        Convention::Scf,
        Convention::Http,
    ] {
        comes_back::<v1::Handler, _>(Handler {
            convention,
            ..s::handler()
        });
    }
    for network in [Network::Egress, Network::None] {
        let dependencies = None;
        comes_back::<v1::RevisionSettings, _>(RevisionSettings {
            network,
            dependencies,
            ..s::settings()
        });
    }
    comes_back::<v1::RevisionSettings, _>(s::settings());
    comes_back::<v1::Source, _>(s::settings().source);
    comes_back::<v1::BuildOutput, _>(s::build());
    comes_back::<v1::BuildOutput, _>(BuildOutput {
        dependencies: None,
        ..s::build()
    });
}

#[test]
fn functions_and_revisions() {
    comes_back::<v1::RevisionId, _>(s::revision_id());
    comes_back::<v1::Function, _>(s::function());
    comes_back::<v1::Function, _>(Function {
        placement: Default::default(),
        ..s::function()
    });
    for spread in [Spread::Auto, Spread::Node] {
        comes_back::<v1::Placement, _>(PlacementRules {
            spread,
            ..s::placement()
        });
    }
    comes_back::<v1::Function, _>(Function {
        serving: None,
        ..s::function()
    });
    comes_back::<v1::Revision, _>(s::revision());
    comes_back::<v1::Revision, _>(Revision {
        build: None,
        ..s::revision()
    });
    for stage in [
        Stage::Received,
        Stage::Building,
        Stage::Deploying,
        Stage::Running,
        Stage::BuildFailed {
            reason: "no such package".into(),
        },
        Stage::DeployFailed {
            reason: "it exits".into(),
        },
        Stage::Abandoned,
    ] {
        comes_back::<v1::Stage, _>(stage);
    }
}

#[test]
fn tasks() {
    comes_back::<v1::Task, _>(s::task());
    comes_back::<v1::TaskSubject, _>(TaskSubject::Namespace {
        name: "demo".into(),
    });
    for (verb, state) in [
        (TaskVerb::Create, TaskState::New),
        (TaskVerb::Update, TaskState::Running),
        (TaskVerb::Delete, TaskState::Finished),
    ] {
        comes_back::<v1::Task, _>(Task {
            verb,
            state,
            revision: None,
            acknowledged_at: None,
            finished_at: None,
            ..s::task()
        });
    }
}

#[test]
fn nodes_and_instances() {
    comes_back::<v1::Stamp, _>(s::stamp());
    comes_back::<v1::Stamp, _>(Stamp::default());
    comes_back::<v1::Resources, _>(Resources {
        memory_mib: 1,
        cpu_millis: 2,
    });
    comes_back::<v1::Node, _>(s::node());
    comes_back::<v1::NodeRecord, _>(s::node_record());
    comes_back::<v1::NodeView, _>(s::node_view());
    for state in [
        NodeState::Ready,
        NodeState::Cordoned,
        NodeState::Drained,
        NodeState::Silent,
        NodeState::Lost,
    ] {
        comes_back::<v1::NodeView, _>(NodeView {
            state,
            ..s::node_view()
        });
    }
    for change in [
        NodeChange::Cordon,
        NodeChange::Uncordon,
        NodeChange::Drain {
            deadline: Some(Timestamp(9)),
            force: true,
        },
        NodeChange::Remove { force: true },
    ] {
        let wire = v1::change_node_request::Change::from(change);
        assert_eq!(NodeChange::try_from(wire), Ok(change));
    }
    comes_back::<v1::NodeRecord, _>(NodeRecord {
        draining: None,
        ..s::node_record()
    });
    comes_back::<v1::Node, _>(Node {
        stems: [].into(),
        images: vec![],
        ..s::node()
    });
    comes_back::<v1::InstanceSpec, _>(s::instance_spec());
    comes_back::<v1::InstanceSpec, _>(InstanceSpec {
        dependencies: None,
        ..s::instance_spec()
    });
    for state in [
        InstanceState::Starting,
        InstanceState::Ready,
        InstanceState::Draining,
    ] {
        comes_back::<v1::InstanceState, _>(state);
    }
    for reason in s::exit_reasons() {
        comes_back::<v1::ExitReason, _>(reason.clone());
        comes_back::<v1::InstanceState, _>(InstanceState::Exited(reason));
    }
}

#[test]
fn queries() {
    for stream in [LogStream::Stdout, LogStream::Stderr, LogStream::Platform] {
        comes_back::<v1::LogLine, _>(LogLine {
            stream,
            request: None,
            ..s::log_line()
        });
    }
    comes_back::<v1::LogLine, _>(s::log_line());
    comes_back::<v1::FunctionView, _>(s::function_view());
    comes_back::<v1::FunctionView, _>(FunctionView {
        serving: None,
        ..s::function_view()
    });
    comes_back::<v1::InstanceView, _>(s::instance_view());
    comes_back::<v1::Decision, _>(s::decision());
    comes_back::<v1::ExitRecord, _>(s::exit_record());
    comes_back::<v1::ExitRecord, _>(ExitRecord {
        retry_at: None,
        ..s::exit_record()
    });
    comes_back::<v1::DescribeFunctionResponse, _>(FunctionRuntimeView::default());
    comes_back::<v1::DescribeFunctionResponse, _>(FunctionRuntimeView {
        instances: vec![s::instance_view()],
        decisions: vec![s::decision()],
        exits: vec![s::exit_record()],
        shortage: Some("no room".into()),
    });
}

#[test]
fn refusals() {
    for refusal in [
        Refusal::NotFound("function a".into()),
        Refusal::AlreadyExists("function a".into()),
        Refusal::Conflict("not empty".into()),
        Refusal::Invalid(Invalid::new("scale.min", "must not exceed scale.max")),
        Refusal::Quota("full".into()),
    ] {
        comes_back::<v1::Refusal, _>(refusal);
    }
}

/// One of each kind.
fn operations() -> Vec<Operation> {
    let (project, task) = (ProjectId(7), Some(TaskId(uuid::Uuid::from_u128(5))));
    vec![
        Operation::CreateProject {
            name: "team".parse().unwrap(),
        },
        Operation::DeleteProject { project },
        Operation::CreateNamespace(o::create_namespace()),
        Operation::UpdateNamespace(o::update_namespace()),
        Operation::DeleteNamespace {
            project,
            name: "demo".parse().unwrap(),
            task,
        },
        Operation::CreateFunction(Box::new(o::create_function())),
        Operation::UpdateFunction(Box::new(o::update_function())),
        Operation::DeleteFunction {
            project,
            function: s::function_ref(),
            task,
        },
        Operation::CreateKey(o::create_key()),
        Operation::UpdateKey(o::update_key()),
        Operation::DeleteKey {
            project,
            name: "ci".parse().unwrap(),
        },
        Operation::CreateToken(o::create_token()),
        Operation::DeleteToken {
            id: TokenId(uuid::Uuid::from_u128(4)),
        },
        Operation::AcknowledgeTask {
            project,
            id: task.unwrap(),
        },
        Operation::CreateJoinToken(o::create_join_token()),
        Operation::RevokeJoinToken {
            id: TokenId(uuid::Uuid::from_u128(4)),
        },
    ]
}

#[test]
fn operations_come_back() {
    for operation in operations() {
        comes_back::<v1::Operation, _>(operation);
    }
}

#[test]
fn what_an_update_does_not_give_stays_not_given() {
    comes_back::<v1::UpdateNamespace, _>(UpdateNamespace {
        description: None,
        env: None,
        task: None,
        ..o::update_namespace()
    });
    comes_back::<v1::UpdateFunction, _>(UpdateFunction {
        description: None,
        annotations: None,
        key_required: None,
        keys: None,
        disabled: None,
        scale_min: None,
        scale_max: None,
        placement: Some(Default::default()),
        settings: SettingsPatch::default(),
        task: None,
        ..o::update_function()
    });
    let nothing = UpdateKey {
        description: None,
        functions: None,
        expires_at: None,
        ..o::update_key()
    };
    comes_back::<v1::UpdateKey, _>(nothing);
}

#[test]
fn taking_away_differs_from_not_giving() {
    comes_back::<v1::SettingsPatch, _>(SettingsPatch {
        dependencies: Some(None),
        ..SettingsPatch::default()
    });
    comes_back::<v1::UpdateKey, _>(UpdateKey {
        expires_at: Some(None),
        ..o::update_key()
    });
}

#[test]
fn an_expiry_at_the_epoch_does_not_become_for_ever() {
    let update = UpdateKey {
        expires_at: Some(Some(Timestamp(0))),
        ..o::update_key()
    };
    let back = UpdateKey::try_from(v1::UpdateKey::from(update)).unwrap();
    assert_eq!(back.expires_at, Some(Some(Timestamp(1))));
}
