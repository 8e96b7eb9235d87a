//! Answers.

use coracle_model::{
    FunctionKey, FunctionRef, InstanceState, LogLine, LogStream, Spread, Stage, Timestamp,
    query::{Decision, ExitRecord, FunctionView, InstanceView},
};

use super::super::wire;
use crate::api::rfc3339_nanos;

/// Without the texts, as lists have it.
pub(crate) fn function(view: &FunctionView, endpoint: String) -> wire::Function {
    let (function, settings) = (&view.function, &view.latest.settings);
    wire::Function {
        id: function.id.to_string(),
        name: function.name.to_string(),
        namespace: view.namespace.to_string(),
        project: view.project.to_string(),
        description: function.description.clone(),
        runtime: settings.runtime.to_string(),
        handler: settings.handler.entry.clone(),
        convention: settings.handler.convention.into(),
        code: None,
        dependencies: None,
        env: settings.env.clone().into(),
        memory_mib: settings.memory.mib(),
        cpu_millis: settings.cpu.get(),
        timeout_seconds: settings.timeout.secs(),
        init_timeout_seconds: settings.init_timeout.secs(),
        concurrency: settings.concurrency.get(),
        network: match settings.network {
            coracle_model::Network::Egress => wire::Network::Egress,
            coracle_model::Network::None => wire::Network::None,
        },
        scale: wire::Scale {
            min: function.scale.min(),
            max: function.scale.max(),
        },
        placement: wire::Placement {
            required: function.placement.required.clone().into(),
            preferred: function.placement.preferred.clone().into(),
            spread: match function.placement.spread {
                Spread::Auto => wire::Spread::Auto,
                Spread::Node => wire::Spread::Node,
                Spread::Zone => wire::Spread::Zone,
            },
        },
        key_required: function.key_required,
        keys: view.keys.iter().map(ToString::to_string).collect(),
        disabled: function.disabled,
        annotations: function.annotations.clone(),
        revision: revision(&view.latest),
        serving_revision: function.serving.map(|revision| revision.number),
        instances: wire::InstanceCount {
            wanted: view.wanted,
            ready: view.ready,
        },
        endpoint,
        created_at: function.created_at.rfc3339(),
        updated_at: function.updated_at.rfc3339(),
    }
}

pub(crate) fn revision(revision: &coracle_model::Revision) -> wire::Revision {
    let (stage, reason) = match &revision.stage {
        Stage::Received => ("received", None),
        Stage::Building => ("building", None),
        Stage::Deploying => ("deploying", None),
        Stage::Running => ("running", None),
        Stage::BuildFailed { reason } => ("build_failed", Some(reason.clone())),
        Stage::DeployFailed { reason } => ("deploy_failed", Some(reason.clone())),
        Stage::Abandoned => ("abandoned", Some("superseded by a newer update".to_owned())),
    };
    wire::Revision {
        number: revision.id.number,
        stage: stage.to_owned(),
        reason,
        message: revision.build.as_ref().map(|build| build.message.clone()),
        runtime_requested: revision.settings.runtime_requested.clone(),
        created_at: revision.created_at.rfc3339(),
    }
}

pub(crate) fn instance(instance: &InstanceView) -> wire::Instance {
    let (state, reason) = match &instance.state {
        InstanceState::Starting => ("starting", None),
        InstanceState::Ready => ("ready", None),
        InstanceState::Draining => ("draining", None),
        InstanceState::Exited(reason) => ("exited", Some(reason.to_string())),
    };
    wire::Instance {
        id: instance.id.to_string(),
        revision: instance.revision.number,
        node: instance.node.to_string(),
        state: state.to_owned(),
        reason,
        since: instance.since.rfc3339(),
        placement: instance.placement.clone(),
    }
}

pub(crate) fn decision(decision: &Decision) -> wire::Decision {
    wire::Decision {
        at: decision.at.rfc3339(),
        from: decision.from,
        to: decision.to,
        reason: decision.reason.clone(),
    }
}

pub(crate) fn exit(exit: &ExitRecord) -> wire::Exit {
    wire::Exit {
        at: exit.at.rfc3339(),
        instance: exit.instance.to_string(),
        revision: exit.revision.number,
        reason: exit.reason.to_string(),
        retry_at: exit.retry_at.map(Timestamp::rfc3339),
    }
}

pub(crate) fn key(key: &FunctionKey, project: String, now: Timestamp) -> wire::Key {
    let function = |function: &FunctionRef| wire::KeyFunction {
        namespace: function.namespace.to_string(),
        name: function.name.to_string(),
    };
    wire::Key {
        id: key.id.to_string(),
        name: key.name.to_string(),
        project,
        description: key.description.clone(),
        functions: key.functions.iter().map(function).collect(),
        expires_at: key.expires_at.map(Timestamp::rfc3339),
        live: key.is_live(now),
        created_at: key.created_at.rfc3339(),
        secret: None,
    }
}

pub(crate) fn log_line(line: LogLine) -> wire::LogLine {
    let stream = match line.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
        LogStream::Platform => "platform",
    };
    wire::LogLine {
        time: rfc3339_nanos(line.at_nanos),
        instance: line.instance.to_string(),
        stream: stream.to_owned(),
        request_id: line.request,
        message: line.message,
    }
}
