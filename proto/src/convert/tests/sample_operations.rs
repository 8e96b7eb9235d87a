//! One operation of each kind, as `samples` has the rest.

use std::collections::BTreeMap;

use coracle_model::{
    ComponentRole, Env, FunctionId, KeyId, NamespaceId, ProjectId, ScaleBounds, SecretHash, TaskId,
    Timestamp, TokenId, TokenRole,
    operation::{
        CreateFunction, CreateJoinToken, CreateKey, CreateNamespace, CreateToken, SettingsPatch,
        UpdateFunction, UpdateKey, UpdateNamespace,
    },
};

use super::samples::{annotations, env, function_ref, placement, settings, uuid};

pub(super) fn create_namespace() -> CreateNamespace {
    CreateNamespace {
        id: NamespaceId(uuid(2)),
        project: ProjectId(7),
        name: "demo".parse().unwrap(),
        description: "a place".into(),
        env: env(),
        task: Some(TaskId(uuid(5))),
    }
}

pub(super) fn update_namespace() -> UpdateNamespace {
    UpdateNamespace {
        project: ProjectId(7),
        name: "demo".parse().unwrap(),
        description: Some(String::new()),
        env: Some(Env::default()),
        task: Some(TaskId(uuid(5))),
    }
}

pub(super) fn create_function() -> CreateFunction {
    CreateFunction {
        id: FunctionId(uuid(1)),
        project: ProjectId(7),
        function: function_ref(),
        description: "says hello".into(),
        annotations: annotations(),
        key_required: true,
        keys: vec!["ci".parse().unwrap()],
        disabled: true,
        scale: ScaleBounds::new(0, 5).unwrap(),
        placement: placement(),
        settings: settings(),
        task: Some(TaskId(uuid(5))),
    }
}

pub(super) fn settings_patch() -> SettingsPatch {
    let settings = settings();
    SettingsPatch {
        handler: Some(settings.handler),
        source: Some(settings.source),
        dependencies: Some(settings.dependencies),
        env: Some(settings.env),
        memory: Some(settings.memory),
        cpu: Some(settings.cpu),
        timeout: Some(settings.timeout),
        init_timeout: Some(settings.init_timeout),
        concurrency: Some(settings.concurrency),
        network: Some(settings.network),
    }
}

pub(super) fn update_function() -> UpdateFunction {
    UpdateFunction {
        project: ProjectId(7),
        function: function_ref(),
        description: Some(String::new()),
        annotations: Some(BTreeMap::new()),
        key_required: Some(false),
        keys: Some(Vec::new()),
        disabled: Some(false),
        scale_min: Some(0),
        scale_max: Some(5),
        placement: Some(placement()),
        settings: settings_patch(),
        task: Some(TaskId(uuid(5))),
    }
}

pub(super) fn create_key() -> CreateKey {
    CreateKey {
        id: KeyId(uuid(3)),
        project: ProjectId(7),
        name: "ci".parse().unwrap(),
        description: "for the pipeline".into(),
        hash: SecretHash::of("secret"),
        functions: vec![function_ref()],
        expires_at: Some(Timestamp(99)),
    }
}

pub(super) fn update_key() -> UpdateKey {
    UpdateKey {
        project: ProjectId(7),
        name: "ci".parse().unwrap(),
        description: Some(String::new()),
        functions: Some(Vec::new()),
        expires_at: Some(Some(Timestamp(99))),
    }
}

pub(super) fn create_token() -> CreateToken {
    CreateToken {
        id: TokenId(uuid(4)),
        description: "admin".into(),
        hash: SecretHash::of("secret"),
        role: TokenRole::Admin,
        expires_at: Some(Timestamp(98)),
    }
}

pub(super) fn create_join_token() -> CreateJoinToken {
    CreateJoinToken {
        id: TokenId(uuid(4)),
        hash: SecretHash::of("secret"),
        role: ComponentRole::Controller,
        expires_at: Timestamp(9),
        uses: 3,
    }
}
