use bytes::Bytes;
use coracle_model::{Operation, ProjectId};

use super::{refused, sample_operations as o, samples as s};
use crate::v1::{self, operation::Kind};

#[test]
fn on_namespaces() {
    type Create = v1::CreateNamespace;
    refused(o::create_namespace(), "id", |w: &mut Create| w.id.clear());
    refused(o::create_namespace(), "project", |w: &mut Create| {
        w.project = 0
    });
    refused(o::create_namespace(), "name", |w: &mut Create| {
        w.name.clear()
    });
    refused(o::create_namespace(), "env", |w: &mut Create| w.env = None);
    refused(o::create_namespace(), "task", |w: &mut Create| {
        w.task = Some(Bytes::new())
    });
    type Update = v1::UpdateNamespace;
    refused(o::update_namespace(), "project", |w: &mut Update| {
        w.project = 0
    });
    refused(o::update_namespace(), "name", |w: &mut Update| {
        w.name.clear()
    });
    refused(o::update_namespace(), "env.vars.?", |w: &mut Update| {
        w.env.as_mut().unwrap().vars.insert("?".into(), "".into());
    });
    refused(o::update_namespace(), "task", |w: &mut Update| {
        w.task = Some(Bytes::new())
    });
}

#[test]
fn on_functions() {
    type Create = v1::CreateFunction;
    refused(o::create_function(), "id", |w: &mut Create| w.id.clear());
    refused(o::create_function(), "project", |w: &mut Create| {
        w.project = 0
    });
    refused(o::create_function(), "function", |w: &mut Create| {
        w.function = None
    });
    refused(o::create_function(), "keys[0]", |w: &mut Create| {
        w.keys[0].clear()
    });
    refused(o::create_function(), "scale", |w: &mut Create| {
        w.scale = None
    });
    refused(o::create_function(), "settings", |w: &mut Create| {
        w.settings = None
    });
    refused(
        o::create_function(),
        "settings.handler.entry",
        |w: &mut Create| {
            w.settings
                .as_mut()
                .unwrap()
                .handler
                .as_mut()
                .unwrap()
                .entry
                .clear();
        },
    );
    refused(o::create_function(), "task", |w: &mut Create| {
        w.task = Some(Bytes::new())
    });
    type Update = v1::UpdateFunction;
    refused(o::update_function(), "project", |w: &mut Update| {
        w.project = 0
    });
    refused(o::update_function(), "function.name", |w: &mut Update| {
        w.function.as_mut().unwrap().name.clear();
    });
    refused(o::update_function(), "keys[0]", |w: &mut Update| {
        w.keys = Some(v1::StringList {
            items: vec!["?".into()],
        });
    });
    refused(o::update_function(), "settings", |w: &mut Update| {
        w.settings = None
    });
    refused(o::update_function(), "task", |w: &mut Update| {
        w.task = Some(Bytes::new())
    });
    type Patch = v1::SettingsPatch;
    let short = || Some(Bytes::from_static(b"short"));
    refused(
        o::settings_patch(),
        "handler.convention",
        |w: &mut Patch| {
            w.handler.as_mut().unwrap().convention = 0;
        },
    );
    refused(o::settings_patch(), "source.kind", |w: &mut Patch| {
        w.source = Some(v1::Source::default());
    });
    refused(o::settings_patch(), "dependencies", |w: &mut Patch| {
        w.dependencies = short()
    });
    refused(o::settings_patch(), "env.vars.?", |w: &mut Patch| {
        w.env.as_mut().unwrap().vars.insert("?".into(), "".into());
    });
    refused(o::settings_patch(), "memory_mib", |w: &mut Patch| {
        w.memory_mib = Some(0)
    });
    refused(o::settings_patch(), "cpu_millis", |w: &mut Patch| {
        w.cpu_millis = Some(0)
    });
    refused(o::settings_patch(), "timeout_secs", |w: &mut Patch| {
        w.timeout_secs = Some(0)
    });
    refused(o::settings_patch(), "init_timeout_secs", |w: &mut Patch| {
        w.init_timeout_secs = Some(0);
    });
    refused(o::settings_patch(), "concurrency", |w: &mut Patch| {
        w.concurrency = Some(0)
    });
    refused(o::settings_patch(), "network", |w: &mut Patch| {
        w.network = 99
    });
}

#[test]
fn on_keys_and_tokens() {
    type Create = v1::CreateKey;
    refused(o::create_key(), "id", |w: &mut Create| w.id.clear());
    refused(o::create_key(), "project", |w: &mut Create| w.project = 0);
    refused(o::create_key(), "name", |w: &mut Create| w.name.clear());
    refused(o::create_key(), "hash", |w: &mut Create| w.hash.clear());
    refused(
        o::create_key(),
        "functions[1].namespace",
        |w: &mut Create| {
            w.functions.push(v1::FunctionRef::default());
        },
    );
    type Update = v1::UpdateKey;
    refused(o::update_key(), "project", |w: &mut Update| w.project = 0);
    refused(o::update_key(), "name", |w: &mut Update| w.name.clear());
    refused(
        o::update_key(),
        "functions[0].namespace",
        |w: &mut Update| {
            w.functions = Some(v1::FunctionRefs {
                items: vec![v1::FunctionRef::default()],
            });
        },
    );
    type Token = v1::CreateToken;
    refused(o::create_token(), "id", |w: &mut Token| w.id.clear());
    refused(o::create_token(), "hash", |w: &mut Token| w.hash.clear());
    refused(o::create_token(), "role", |w: &mut Token| w.role = None);
}

#[test]
fn the_path_starts_with_the_kind_of_operation() {
    for (kind, field) in [
        (
            Kind::CreateProject(v1::CreateProject::default()),
            "create_project.name",
        ),
        (
            Kind::DeleteProject(v1::DeleteProject::default()),
            "delete_project.project",
        ),
        (
            Kind::CreateNamespace(v1::CreateNamespace::default()),
            "create_namespace.id",
        ),
        (
            Kind::UpdateNamespace(v1::UpdateNamespace::default()),
            "update_namespace.project",
        ),
        (
            Kind::DeleteNamespace(v1::DeleteNamespace::default()),
            "delete_namespace.project",
        ),
        (
            Kind::CreateFunction(v1::CreateFunction::default()),
            "create_function.id",
        ),
        (
            Kind::UpdateFunction(v1::UpdateFunction::default()),
            "update_function.project",
        ),
        (
            Kind::DeleteFunction(v1::DeleteFunction::default()),
            "delete_function.project",
        ),
        (Kind::CreateKey(v1::CreateKey::default()), "create_key.id"),
        (
            Kind::UpdateKey(v1::UpdateKey::default()),
            "update_key.project",
        ),
        (
            Kind::DeleteKey(v1::DeleteKey::default()),
            "delete_key.project",
        ),
        (
            Kind::CreateToken(v1::CreateToken::default()),
            "create_token.id",
        ),
        (
            Kind::DeleteToken(v1::DeleteToken::default()),
            "delete_token.id",
        ),
        (
            Kind::AcknowledgeTask(v1::AcknowledgeTask::default()),
            "acknowledge_task.project",
        ),
    ] {
        let error = Operation::try_from(v1::Operation { kind: Some(kind) }).expect_err(field);
        assert_eq!(error.field, field);
    }
    let any = Operation::DeleteProject {
        project: ProjectId(7),
    };
    refused(any, "kind", |w: &mut v1::Operation| w.kind = None);
}

#[test]
fn the_rest_of_the_small_ones() {
    let project = ProjectId(7);
    let namespace = Operation::DeleteNamespace {
        project,
        name: "demo".parse().unwrap(),
        task: None,
    };
    refused(
        namespace,
        "delete_namespace.task",
        |w: &mut v1::Operation| {
            if let Some(Kind::DeleteNamespace(m)) = &mut w.kind {
                m.task = Some(Bytes::new());
            }
        },
    );
    let function = || Operation::DeleteFunction {
        project,
        function: s::function_ref(),
        task: None,
    };
    refused(
        function(),
        "delete_function.function",
        |w: &mut v1::Operation| {
            if let Some(Kind::DeleteFunction(m)) = &mut w.kind {
                m.function = None;
            }
        },
    );
    refused(
        function(),
        "delete_function.task",
        |w: &mut v1::Operation| {
            if let Some(Kind::DeleteFunction(m)) = &mut w.kind {
                m.task = Some(Bytes::new());
            }
        },
    );
    let key = Operation::DeleteKey {
        project,
        name: "ci".parse().unwrap(),
    };
    refused(key, "delete_key.name", |w: &mut v1::Operation| {
        if let Some(Kind::DeleteKey(m)) = &mut w.kind {
            m.name.clear();
        }
    });
}
