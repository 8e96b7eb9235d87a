use bytes::Bytes;
use coracle_model::{Refusal, Stage, query::FunctionRuntimeView};

use super::{refused, samples as s};
use crate::v1;

#[test]
fn tenancy_and_access() {
    refused(s::project(), "id", |w: &mut v1::Project| w.id = 0);
    refused(s::project(), "name", |w: &mut v1::Project| w.name.clear());
    refused(s::namespace(), "id", |w: &mut v1::Namespace| {
        w.id = Bytes::from_static(b"short")
    });
    refused(s::namespace(), "project", |w: &mut v1::Namespace| {
        w.project = 0
    });
    refused(s::namespace(), "name", |w: &mut v1::Namespace| {
        w.name = "No".into()
    });
    refused(s::namespace(), "env", |w: &mut v1::Namespace| w.env = None);
    refused(s::function_ref(), "namespace", |w: &mut v1::FunctionRef| {
        w.namespace.clear()
    });
    refused(s::function_ref(), "name", |w: &mut v1::FunctionRef| {
        w.name = "-".into()
    });
    refused(s::key(), "id", |w: &mut v1::FunctionKey| w.id.clear());
    refused(s::key(), "project", |w: &mut v1::FunctionKey| w.project = 0);
    refused(s::key(), "name", |w: &mut v1::FunctionKey| w.name.clear());
    refused(s::key(), "hash", |w: &mut v1::FunctionKey| {
        w.hash.truncate(31)
    });
    refused(s::key(), "functions[0].name", |w: &mut v1::FunctionKey| {
        w.functions[0].name.clear()
    });
    refused(s::token(), "id", |w: &mut v1::Token| w.id.clear());
    refused(s::token(), "hash", |w: &mut v1::Token| w.hash.clear());
    refused(s::token(), "role", |w: &mut v1::Token| w.role = None);
    refused(s::token(), "role.role", |w: &mut v1::Token| {
        w.role = Some(v1::TokenRole::default())
    });
    refused(s::token(), "role.project", |w: &mut v1::Token| {
        w.role = Some(v1::TokenRole {
            role: Some(v1::token_role::Role::Project(0)),
        });
    });
}

#[test]
fn settings() {
    type Settings = v1::RevisionSettings;
    refused(s::env(), "vars.1A", |w: &mut v1::Env| {
        drop(w.vars.insert("1A".into(), "".into()))
    });
    let many = |w: &mut v1::Env| w.vars = s::largest_instance_env().into();
    refused(s::env(), "vars", many);
    refused(s::function().scale, "min", |w: &mut v1::ScaleBounds| {
        w.min = 6
    });
    refused(s::function().scale, "max", |w: &mut v1::ScaleBounds| {
        w.max = 51
    });
    refused(s::handler(), "entry", |w: &mut v1::Handler| w.entry.clear());
    refused(s::handler(), "convention", |w: &mut v1::Handler| {
        w.convention = 0
    });
    refused(s::handler(), "convention", |w: &mut v1::Handler| {
        w.convention = 99
    });
    refused(s::settings().source, "kind", |w: &mut v1::Source| {
        w.kind = None
    });
    refused(s::settings(), "runtime", |w: &mut Settings| {
        w.runtime.clear()
    });
    refused(s::settings(), "handler", |w: &mut Settings| {
        w.handler = None
    });
    refused(s::settings(), "source", |w: &mut Settings| w.source = None);
    refused(s::settings(), "source.inline.code", |w: &mut Settings| {
        let inline = v1::source::Inline { code: Bytes::new() };
        w.source = Some(v1::Source {
            kind: Some(v1::source::Kind::Inline(inline)),
        });
    });
    refused(s::settings(), "dependencies", |w: &mut Settings| {
        w.dependencies = Some(Bytes::new())
    });
    refused(s::settings(), "env", |w: &mut Settings| w.env = None);
    refused(s::settings(), "memory_mib", |w: &mut Settings| {
        w.memory_mib = 0
    });
    refused(s::settings(), "cpu_millis", |w: &mut Settings| {
        w.cpu_millis = 0
    });
    refused(s::settings(), "timeout_secs", |w: &mut Settings| {
        w.timeout_secs = 901
    });
    refused(s::settings(), "init_timeout_secs", |w: &mut Settings| {
        w.init_timeout_secs = 0
    });
    refused(s::settings(), "concurrency", |w: &mut Settings| {
        w.concurrency = 0
    });
    refused(s::settings(), "network", |w: &mut Settings| w.network = 0);
    refused(s::settings(), "network", |w: &mut Settings| w.network = -1);
    refused(s::build(), "code", |w: &mut v1::BuildOutput| w.code.clear());
    refused(s::build(), "dependencies", |w: &mut v1::BuildOutput| {
        w.dependencies = Some(Bytes::from_static(b"short"));
    });
}

#[test]
fn functions_and_revisions() {
    refused(s::revision_id(), "function", |w: &mut v1::RevisionId| {
        w.function.clear()
    });
    refused(s::revision_id(), "number", |w: &mut v1::RevisionId| {
        w.number = 0
    });
    refused(s::function(), "id", |w: &mut v1::Function| w.id.clear());
    refused(s::function(), "project", |w: &mut v1::Function| {
        w.project = 0
    });
    refused(s::function(), "namespace", |w: &mut v1::Function| {
        w.namespace.clear()
    });
    refused(s::function(), "name", |w: &mut v1::Function| w.name.clear());
    refused(s::function(), "scale", |w: &mut v1::Function| {
        w.scale = None
    });
    refused(s::function(), "latest", |w: &mut v1::Function| w.latest = 0);
    refused(s::function(), "serving", |w: &mut v1::Function| {
        w.serving = Some(0)
    });
    refused(Stage::Building, "kind", |w: &mut v1::Stage| w.kind = 0);
    refused(Stage::Building, "kind", |w: &mut v1::Stage| w.kind = 99);
    refused(s::revision(), "id", |w: &mut v1::Revision| w.id = None);
    refused(s::revision(), "settings", |w: &mut v1::Revision| {
        w.settings = None
    });
    refused(s::revision(), "instance_env", |w: &mut v1::Revision| {
        w.instance_env = None
    });
    refused(
        s::revision(),
        "instance_env.vars",
        |w: &mut v1::Revision| {
            let vars = &mut w.instance_env.as_mut().unwrap().vars;
            vars.extend((0..10).map(|n| (format!("C{n}"), "x".into())));
        },
    );
    refused(s::revision(), "stage", |w: &mut v1::Revision| {
        w.stage = None
    });
    refused(s::revision(), "build.code", |w: &mut v1::Revision| {
        w.build = Some(v1::BuildOutput::default());
    });
}

#[test]
fn tasks() {
    refused(s::task(), "id", |w: &mut v1::Task| w.id.clear());
    refused(s::task(), "project", |w: &mut v1::Task| w.project = 0);
    refused(s::task(), "verb", |w: &mut v1::Task| w.verb = 0);
    refused(s::task(), "verb", |w: &mut v1::Task| w.verb = 99);
    refused(s::task(), "subject", |w: &mut v1::Task| w.subject = None);
    refused(s::subject(), "subject", |w: &mut v1::TaskSubject| {
        w.subject = None
    });
    refused(s::task(), "revision.number", |w: &mut v1::Task| {
        w.revision.as_mut().unwrap().number = 0;
    });
    refused(s::task(), "state", |w: &mut v1::Task| w.state = 0);
    refused(s::task(), "state", |w: &mut v1::Task| w.state = 99);
}

#[test]
fn nodes_and_instances() {
    type Spec = v1::InstanceSpec;
    refused(s::node(), "id", |w: &mut v1::Node| w.id.clear());
    refused(s::node(), "name", |w: &mut v1::Node| w.name.clear());
    refused(s::node_record(), "id", |w: &mut v1::NodeRecord| {
        w.id.clear()
    });
    refused(s::node_record(), "name", |w: &mut v1::NodeRecord| {
        w.name = "a b".into();
    });
    refused(s::node_record(), "labels.a b", |w: &mut v1::NodeRecord| {
        w.labels.insert("a b".into(), String::new());
    });
    refused(s::node(), "allocatable", |w: &mut v1::Node| {
        w.allocatable = None
    });
    refused(s::node(), "stems", |w: &mut v1::Node| {
        let _ = w.stems.insert("?".into(), 1);
    });
    refused(s::node(), "images[0]", |w: &mut v1::Node| {
        w.images[0].clear()
    });
    refused(s::instance_spec(), "id", |w: &mut Spec| w.id.clear());
    refused(s::instance_spec(), "revision", |w: &mut Spec| {
        w.revision = None
    });
    refused(s::instance_spec(), "project", |w: &mut Spec| {
        w.project.clear()
    });
    refused(s::instance_spec(), "namespace", |w: &mut Spec| {
        w.namespace.clear()
    });
    refused(s::instance_spec(), "function", |w: &mut Spec| {
        w.function.clear()
    });
    refused(s::instance_spec(), "runtime", |w: &mut Spec| {
        w.runtime = "a/b".into()
    });
    refused(s::instance_spec(), "handler", |w: &mut Spec| {
        w.handler = None
    });
    refused(s::instance_spec(), "env", |w: &mut Spec| w.env = None);
    refused(s::instance_spec(), "memory_mib", |w: &mut Spec| {
        w.memory_mib = 15
    });
    refused(s::instance_spec(), "cpu_millis", |w: &mut Spec| {
        w.cpu_millis = 9
    });
    refused(s::instance_spec(), "concurrency", |w: &mut Spec| {
        w.concurrency = 0
    });
    refused(s::instance_spec(), "network", |w: &mut Spec| w.network = 0);
    refused(s::instance_spec(), "timeout_secs", |w: &mut Spec| {
        w.timeout_secs = 0
    });
    refused(s::instance_spec(), "init_timeout_secs", |w: &mut Spec| {
        w.init_timeout_secs = 0
    });
    refused(s::instance_spec(), "code", |w: &mut Spec| w.code.clear());
    refused(s::instance_spec(), "dependencies", |w: &mut Spec| {
        w.dependencies = Some(Bytes::new())
    });
    let reason = || s::exit_reasons().remove(0);
    refused(reason(), "kind", |w: &mut v1::ExitReason| w.kind = None);
    let state = || s::instance_view().state;
    refused(state(), "kind", |w: &mut v1::InstanceState| w.kind = 0);
    refused(state(), "kind", |w: &mut v1::InstanceState| w.kind = 99);
    refused(state(), "exit", |w: &mut v1::InstanceState| w.exit = None);
}

#[test]
fn queries() {
    type View = v1::FunctionView;
    refused(s::log_line(), "instance", |w: &mut v1::LogLine| {
        w.instance.clear()
    });
    refused(s::log_line(), "stream", |w: &mut v1::LogLine| w.stream = 0);
    refused(s::function_view(), "function", |w: &mut View| {
        w.function = None
    });
    refused(s::function_view(), "namespace", |w: &mut View| {
        w.namespace.clear()
    });
    refused(s::function_view(), "project", |w: &mut View| {
        w.project.clear()
    });
    refused(s::function_view(), "latest", |w: &mut View| w.latest = None);
    refused(s::function_view(), "serving.stage", |w: &mut View| {
        w.serving.as_mut().unwrap().stage = None;
    });
    refused(s::function_view(), "keys[0]", |w: &mut View| {
        w.keys[0].clear()
    });
    refused(s::instance_view(), "id", |w: &mut v1::InstanceView| {
        w.id.clear()
    });
    refused(
        s::instance_view(),
        "revision",
        |w: &mut v1::InstanceView| w.revision = None,
    );
    refused(s::instance_view(), "node", |w: &mut v1::InstanceView| {
        w.node.clear()
    });
    refused(s::instance_view(), "state", |w: &mut v1::InstanceView| {
        w.state = None
    });
    refused(s::decision(), "reason", |w: &mut v1::Decision| {
        w.reason.clear()
    });
    refused(s::exit_record(), "instance", |w: &mut v1::ExitRecord| {
        w.instance.clear()
    });
    refused(s::exit_record(), "revision", |w: &mut v1::ExitRecord| {
        w.revision = None
    });
    refused(s::exit_record(), "reason", |w: &mut v1::ExitRecord| {
        w.reason = None
    });
    refused(FunctionRuntimeView::default(), "decisions[0].reason", |w| {
        let described: &mut v1::DescribeFunctionResponse = w;
        described.decisions.push(v1::Decision::default());
    });
}

#[test]
fn refusals() {
    let conflict = || Refusal::Conflict("no".into());
    refused(conflict(), "kind", |w: &mut v1::Refusal| w.kind = 0);
    refused(conflict(), "kind", |w: &mut v1::Refusal| w.kind = 99);
    refused(conflict(), "field", |w: &mut v1::Refusal| {
        w.kind = v1::refusal::Kind::Invalid.into()
    });
}

#[test]
fn clusters() {
    refused(s::join_token(), "id", |w: &mut v1::JoinToken| w.id.clear());
    refused(s::join_token(), "hash", |w: &mut v1::JoinToken| {
        w.hash.clear()
    });
    refused(s::join_token(), "role", |w: &mut v1::JoinToken| w.role = 0);
    refused(s::join_token(), "role", |w: &mut v1::JoinToken| w.role = 9);
    refused(s::member(), "id", |w: &mut v1::Member| w.id = 0);
    refused(s::member(), "name", |w: &mut v1::Member| w.name.clear());
    refused(s::member(), "address", |w: &mut v1::Member| {
        w.address.clear()
    });
    refused(s::member(), "wrapping_key", |w: &mut v1::Member| {
        w.wrapping_key.clear()
    });
    type Secrets = v1::ClusterSecrets;
    refused(s::secrets(), "ca_certificate", |w: &mut Secrets| {
        w.ca_certificate.clear()
    });
    refused(s::secrets(), "ca_key", |w: &mut Secrets| w.ca_key.clear());
    refused(s::secrets(), "generation", |w: &mut Secrets| {
        w.generation = 0
    });
    refused(s::secrets(), "wrapped", |w: &mut Secrets| {
        w.wrapped.insert(0, Bytes::from_static(b"x"));
    });
    refused(s::secrets(), "wrapped", |w: &mut Secrets| {
        w.wrapped.insert(1, Bytes::new());
    });
    refused(s::admission(), "role", |w: &mut v1::Admission| {
        w.role = None
    });
    for field in ["name", "address", "wrapping_key", "wrapped"] {
        refused(
            s::admission(),
            &format!("controller.{field}"),
            |w: &mut v1::Admission| {
                let Some(v1::admission::Role::Controller(controller)) = &mut w.role else {
                    panic!("a controller was given");
                };
                match field {
                    "name" => controller.name.clear(),
                    "address" => controller.address.clear(),
                    "wrapping_key" => controller.wrapping_key.clear(),
                    _ => controller.wrapped.clear(),
                }
            },
        );
    }
}
