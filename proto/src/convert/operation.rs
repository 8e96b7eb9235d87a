//! Everything a client can change. Keys and tokens are in `access`.

mod access;

use bytes::Bytes;
use coracle_model::{
    Digest, Operation,
    operation::{CreateFunction, CreateNamespace, SettingsPatch, UpdateFunction, UpdateNamespace},
};

use super::{ConvertError, Wire, enumeration, function::unless_default, optional, required};
use crate::v1::{self, operation::Kind};

impl From<Operation> for v1::Operation {
    fn from(value: Operation) -> Self {
        let kind = match value {
            Operation::CreateProject { name } => {
                Kind::CreateProject(v1::CreateProject { name: name.into() })
            }
            Operation::DeleteProject { project } => Kind::DeleteProject(v1::DeleteProject {
                project: project.to_wire(),
            }),
            Operation::CreateNamespace(create) => Kind::CreateNamespace(create.into()),
            Operation::UpdateNamespace(update) => Kind::UpdateNamespace(update.into()),
            Operation::DeleteNamespace {
                project,
                name,
                task,
            } => Kind::DeleteNamespace(v1::DeleteNamespace {
                project: project.to_wire(),
                name: name.into(),
                task: task.to_wire(),
            }),
            Operation::CreateFunction(create) => Kind::CreateFunction((*create).into()),
            Operation::UpdateFunction(update) => Kind::UpdateFunction((*update).into()),
            Operation::DeleteFunction {
                project,
                function,
                task,
            } => Kind::DeleteFunction(v1::DeleteFunction {
                project: project.to_wire(),
                function: Some(function.into()),
                task: task.to_wire(),
            }),
            Operation::CreateKey(create) => Kind::CreateKey(create.into()),
            Operation::UpdateKey(update) => Kind::UpdateKey(update.into()),
            Operation::DeleteKey { project, name } => Kind::DeleteKey(v1::DeleteKey {
                project: project.to_wire(),
                name: name.into(),
            }),
            Operation::CreateToken(create) => Kind::CreateToken(create.into()),
            Operation::DeleteToken { id } => {
                Kind::DeleteToken(v1::DeleteToken { id: id.to_wire() })
            }
            Operation::AcknowledgeTask { project, id } => {
                Kind::AcknowledgeTask(v1::AcknowledgeTask {
                    project: project.to_wire(),
                    id: id.to_wire(),
                })
            }
            Operation::CreateJoinToken(create) => Kind::CreateJoinToken(create.into()),
            Operation::RevokeJoinToken { id } => {
                Kind::RevokeJoinToken(v1::RevokeJoinToken { id: id.to_wire() })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Operation> for Operation {
    type Error = ConvertError;
    fn try_from(value: v1::Operation) -> Result<Self, ConvertError> {
        let (field, result) = match value.kind.ok_or_else(|| ConvertError::missing("kind"))? {
            Kind::CreateProject(m) => (
                "create_project",
                Wire::from_wire("name", m.name).map(|name| Self::CreateProject { name }),
            ),
            Kind::DeleteProject(m) => (
                "delete_project",
                Wire::from_wire("project", m.project)
                    .map(|project| Self::DeleteProject { project }),
            ),
            Kind::CreateNamespace(m) => {
                ("create_namespace", m.try_into().map(Self::CreateNamespace))
            }
            Kind::UpdateNamespace(m) => {
                ("update_namespace", m.try_into().map(Self::UpdateNamespace))
            }
            Kind::DeleteNamespace(m) => ("delete_namespace", delete_namespace(m)),
            Kind::CreateFunction(m) => (
                "create_function",
                m.try_into().map(|m| Self::CreateFunction(Box::new(m))),
            ),
            Kind::UpdateFunction(m) => (
                "update_function",
                m.try_into().map(|m| Self::UpdateFunction(Box::new(m))),
            ),
            Kind::DeleteFunction(m) => ("delete_function", delete_function(m)),
            Kind::CreateKey(m) => ("create_key", m.try_into().map(Self::CreateKey)),
            Kind::UpdateKey(m) => ("update_key", m.try_into().map(Self::UpdateKey)),
            Kind::DeleteKey(m) => ("delete_key", delete_key(m)),
            Kind::CreateToken(m) => ("create_token", m.try_into().map(Self::CreateToken)),
            Kind::DeleteToken(m) => (
                "delete_token",
                Wire::from_wire("id", m.id).map(|id| Self::DeleteToken { id }),
            ),
            Kind::AcknowledgeTask(m) => ("acknowledge_task", acknowledge_task(m)),
            Kind::CreateJoinToken(m) => {
                ("create_join_token", m.try_into().map(Self::CreateJoinToken))
            }
            Kind::RevokeJoinToken(m) => (
                "revoke_join_token",
                Wire::from_wire("id", m.id).map(|id| Self::RevokeJoinToken { id }),
            ),
        };
        result.map_err(|error: ConvertError| error.inside(field))
    }
}

fn delete_namespace(m: v1::DeleteNamespace) -> Result<Operation, ConvertError> {
    Ok(Operation::DeleteNamespace {
        project: Wire::from_wire("project", m.project)?,
        name: Wire::from_wire("name", m.name)?,
        task: Wire::from_wire("task", m.task)?,
    })
}

fn delete_function(m: v1::DeleteFunction) -> Result<Operation, ConvertError> {
    Ok(Operation::DeleteFunction {
        project: Wire::from_wire("project", m.project)?,
        function: required("function", m.function)?,
        task: Wire::from_wire("task", m.task)?,
    })
}

fn delete_key(m: v1::DeleteKey) -> Result<Operation, ConvertError> {
    Ok(Operation::DeleteKey {
        project: Wire::from_wire("project", m.project)?,
        name: Wire::from_wire("name", m.name)?,
    })
}

fn acknowledge_task(m: v1::AcknowledgeTask) -> Result<Operation, ConvertError> {
    Ok(Operation::AcknowledgeTask {
        project: Wire::from_wire("project", m.project)?,
        id: Wire::from_wire("id", m.id)?,
    })
}

impl From<CreateNamespace> for v1::CreateNamespace {
    fn from(value: CreateNamespace) -> Self {
        Self {
            id: value.id.to_wire(),
            project: value.project.to_wire(),
            name: value.name.into(),
            description: value.description,
            env: Some(value.env.into()),
            task: value.task.to_wire(),
        }
    }
}

impl TryFrom<v1::CreateNamespace> for CreateNamespace {
    type Error = ConvertError;
    fn try_from(value: v1::CreateNamespace) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            project: Wire::from_wire("project", value.project)?,
            name: Wire::from_wire("name", value.name)?,
            description: value.description,
            env: required("env", value.env)?,
            task: Wire::from_wire("task", value.task)?,
        })
    }
}

impl From<UpdateNamespace> for v1::UpdateNamespace {
    fn from(value: UpdateNamespace) -> Self {
        Self {
            project: value.project.to_wire(),
            name: value.name.into(),
            description: value.description,
            env: value.env.map(Into::into),
            task: value.task.to_wire(),
        }
    }
}

impl TryFrom<v1::UpdateNamespace> for UpdateNamespace {
    type Error = ConvertError;
    fn try_from(value: v1::UpdateNamespace) -> Result<Self, ConvertError> {
        Ok(Self {
            project: Wire::from_wire("project", value.project)?,
            name: Wire::from_wire("name", value.name)?,
            description: value.description,
            env: optional("env", value.env)?,
            task: Wire::from_wire("task", value.task)?,
        })
    }
}

impl From<CreateFunction> for v1::CreateFunction {
    fn from(value: CreateFunction) -> Self {
        Self {
            id: value.id.to_wire(),
            project: value.project.to_wire(),
            function: Some(value.function.into()),
            description: value.description,
            annotations: value.annotations,
            key_required: value.key_required,
            keys: value.keys.to_wire(),
            disabled: value.disabled,
            scale: Some(value.scale.into()),
            settings: Some(value.settings.into()),
            task: value.task.to_wire(),
            placement: unless_default(value.placement),
        }
    }
}

impl TryFrom<v1::CreateFunction> for CreateFunction {
    type Error = ConvertError;
    fn try_from(value: v1::CreateFunction) -> Result<Self, ConvertError> {
        Ok(Self {
            id: Wire::from_wire("id", value.id)?,
            project: Wire::from_wire("project", value.project)?,
            function: required("function", value.function)?,
            description: value.description,
            annotations: value.annotations,
            key_required: value.key_required,
            keys: Wire::from_wire("keys", value.keys)?,
            disabled: value.disabled,
            scale: required("scale", value.scale)?,
            placement: optional("placement", value.placement)?.unwrap_or_default(),
            settings: required("settings", value.settings)?,
            task: Wire::from_wire("task", value.task)?,
        })
    }
}

impl From<UpdateFunction> for v1::UpdateFunction {
    fn from(value: UpdateFunction) -> Self {
        Self {
            project: value.project.to_wire(),
            function: Some(value.function.into()),
            description: value.description,
            annotations: value.annotations.map(|entries| v1::StringMap { entries }),
            key_required: value.key_required,
            keys: value.keys.map(|keys| v1::StringList {
                items: keys.to_wire(),
            }),
            disabled: value.disabled,
            scale_min: value.scale_min,
            scale_max: value.scale_max,
            settings: Some(value.settings.into()),
            task: value.task.to_wire(),
            placement: value.placement.map(Into::into),
        }
    }
}

impl TryFrom<v1::UpdateFunction> for UpdateFunction {
    type Error = ConvertError;
    fn try_from(value: v1::UpdateFunction) -> Result<Self, ConvertError> {
        Ok(Self {
            project: Wire::from_wire("project", value.project)?,
            function: required("function", value.function)?,
            description: value.description,
            annotations: value.annotations.map(|map| map.entries),
            key_required: value.key_required,
            keys: Wire::from_wire("keys", value.keys.map(|list| list.items))?,
            disabled: value.disabled,
            scale_min: value.scale_min,
            scale_max: value.scale_max,
            placement: optional("placement", value.placement)?,
            settings: required("settings", value.settings)?,
            task: Wire::from_wire("task", value.task)?,
        })
    }
}

impl From<SettingsPatch> for v1::SettingsPatch {
    fn from(value: SettingsPatch) -> Self {
        Self {
            handler: value.handler.map(Into::into),
            source: value.source.map(Into::into),
            // Empty bytes, which no digest is, mean: take the dependencies away.
            dependencies: value
                .dependencies
                .map(|change| change.map_or_else(Bytes::new, |digest| digest.to_wire())),
            env: value.env.map(Into::into),
            memory_mib: value.memory.to_wire(),
            cpu_millis: value.cpu.to_wire(),
            timeout_secs: value.timeout.to_wire(),
            init_timeout_secs: value.init_timeout.to_wire(),
            concurrency: value.concurrency.to_wire(),
            // The zero of an enum is "not given".
            network: value
                .network
                .map_or(0, |network| v1::Network::from(network).into()),
        }
    }
}

impl TryFrom<v1::SettingsPatch> for SettingsPatch {
    type Error = ConvertError;
    fn try_from(value: v1::SettingsPatch) -> Result<Self, ConvertError> {
        let dependencies = |bytes: Bytes| match bytes.is_empty() {
            true => Ok(None),
            false => Digest::from_wire("dependencies", bytes).map(Some),
        };
        Ok(Self {
            handler: optional("handler", value.handler)?,
            source: optional("source", value.source)?,
            dependencies: value.dependencies.map(dependencies).transpose()?,
            env: optional("env", value.env)?,
            memory: Wire::from_wire("memory_mib", value.memory_mib)?,
            cpu: Wire::from_wire("cpu_millis", value.cpu_millis)?,
            timeout: Wire::from_wire("timeout_secs", value.timeout_secs)?,
            init_timeout: Wire::from_wire("init_timeout_secs", value.init_timeout_secs)?,
            concurrency: Wire::from_wire("concurrency", value.concurrency)?,
            network: match value.network {
                0 => None,
                number => Some(enumeration::<v1::Network, _>("network", number)?),
            },
        })
    }
}
