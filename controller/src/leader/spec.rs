//! From what is replicated to what an instance, a plan or a route needs.

use coracle_model::{Function, InstanceId, InstanceSpec, Revision, RevisionId};
use coracle_planner::{Failures, RevisionInput};
use coracle_state::View;

/// Everything an agent needs to run this revision once more. `None` before it is built, and once
/// its function is gone.
pub(crate) fn instance_spec(
    view: &View,
    id: InstanceId,
    revision: RevisionId,
) -> Option<InstanceSpec> {
    let record = view.function(revision.function)?;
    let function = &record.function;
    let revision = record.revision(revision.number)?;
    let build = revision.build.as_ref()?;
    let settings = &revision.settings;
    Some(InstanceSpec {
        id,
        revision: revision.id,
        project: view.project(function.project)?.name.clone(),
        namespace: view.namespace(function.namespace)?.name.clone(),
        function: function.name.clone(),
        runtime: settings.runtime.clone(),
        handler: settings.handler.clone(),
        env: revision.instance_env.clone(),
        memory: settings.memory,
        cpu: settings.cpu,
        concurrency: settings.concurrency,
        network: settings.network,
        timeout: settings.timeout,
        init_timeout: settings.init_timeout,
        code: build.code,
        dependencies: build.dependencies,
    })
}

pub(crate) fn revision_input(
    function: &Function,
    revision: &Revision,
    failures: Option<&Failures>,
) -> RevisionInput {
    let settings = &revision.settings;
    RevisionInput {
        id: revision.id,
        runtime: settings.runtime.clone(),
        memory_mib: settings.memory.mib(),
        cpu_millis: settings.cpu.get(),
        concurrency: settings.concurrency.get(),
        rules: function.placement.clone(),
        failures: failures.cloned(),
    }
}

/// As far as the books of a node are concerned.
pub(crate) fn size_of(spec: &InstanceSpec) -> RevisionInput {
    RevisionInput {
        id: spec.revision,
        runtime: spec.runtime.clone(),
        memory_mib: spec.memory.mib(),
        cpu_millis: spec.cpu.get(),
        concurrency: spec.concurrency.get(),
        rules: Default::default(),
        failures: None,
    }
}
