//! The loop that has received revisions built, and says what came of it.

use std::{collections::BTreeMap, sync::Arc};

use coracle_base::Shutdown;
use coracle_model::{
    BuildId, BuildOutput, NodeId, Revision, RevisionId, Stage, Timestamp, WriteId,
};
use coracle_proto::{ConvertError, Wire as _, required, v1};
use coracle_state::{Body, View};
use uuid::Uuid;

use super::memory::{Build, Leadership, Memory};
use crate::{
    config::LeaderConfig,
    copies::Held,
    core::{Core, chain, fresh_write},
    metrics,
};

pub(crate) async fn run(core: Arc<Core>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = core.build_wake.notified() => {}
            () = tokio::time::sleep(core.config.tick) => {}
            () = shutdown.requested() => return,
        }
        turn(&core).await;
    }
}

async fn turn(core: &Core) {
    let now = core.now();
    let (ended, over) = {
        let mut memory = core.memory();
        // While agents may still say that a build is theirs, none is given out again.
        if memory.leadership != Leadership::Leading {
            return;
        }
        let view = core.view();
        let over = drop_superseded(&mut memory, &view);
        give_up(&mut memory, &core.config, now);
        let ended: Vec<(RevisionId, WriteId, Result<BuildOutput, String>)> = memory
            .builds
            .iter()
            .filter_map(|(id, b)| b.result.clone().map(|(write, result)| (*id, write, result)))
            .collect();
        (ended, over)
    };
    for revision in over {
        end_log(core, revision).await;
    }
    for (revision, write, result) in ended {
        finish(core, revision, write, result).await;
    }
    while let Some(revision) = assign(core, now).await {
        tracing::info!(%revision, "build ordered");
    }
}

/// Orders for revisions that need no build any more: superseded, deleted, or done.
fn drop_superseded(memory: &mut Memory, view: &View) -> Vec<RevisionId> {
    let over: Vec<RevisionId> = memory
        .builds
        .keys()
        .filter(|id| !view.revision(**id).is_some_and(|r| needs_build(r)))
        .copied()
        .collect();
    for revision in &over {
        take_off(memory, *revision);
    }
    over
}

/// Builds whose node is gone go to another; those that take too long, or lost too many nodes, fail.
fn give_up(memory: &mut Memory, config: &LeaderConfig, now: Timestamp) {
    let deadline = u64::try_from(config.build_deadline.as_millis()).unwrap_or(u64::MAX);
    let mut moved = Vec::new();
    for (revision, build) in memory.builds.iter_mut().filter(|(_, b)| b.result.is_none()) {
        let alive = memory
            .inputs
            .get(&build.node)
            .is_some_and(|node| node.alive);
        if now.since(build.started) >= deadline {
            let minutes = deadline / 60_000;
            let reason = format!("the build did not end within {minutes} minutes");
            build.result = Some((fresh_write(), Err(reason)));
        } else if !alive && build.attempts >= config.build_attempts {
            let reason = format!(
                "the node was lost during each of {} attempts",
                build.attempts
            );
            build.result = Some((fresh_write(), Err(reason)));
        } else if !alive {
            moved.push(*revision);
        }
    }
    for revision in moved {
        if let Some(build) = memory.builds.get(&revision) {
            tracing::warn!(%revision, node = %build.node, "the build's node is gone");
        }
        reassign(memory, config, revision, now);
    }
}

/// Chooses a node for the next revision without a build, writes that it is building, and orders it.
async fn assign(core: &Core, now: Timestamp) -> Option<RevisionId> {
    let revision = {
        let memory = core.memory();
        let view = core.view();
        choose(&memory, &core.config, None)?;
        let mut waiting = view.unsettled().filter(|r| needs_build(r));
        waiting
            .find(|r| !memory.builds.contains_key(&r.id))
            .cloned()
    }?;
    if revision.stage == Stage::Received
        && !core
            .step(Body::BeginBuild {
                revision: revision.id,
            })
            .await
    {
        return None;
    }
    if let Err(error) = core.build_logs.begin(revision.id).await {
        tracing::error!(error = %chain(&error), revision = %revision.id, "no build log");
    }
    let mut memory = core.memory();
    // Superseded while we wrote: the next turn sees it.
    let is_needed = core
        .view()
        .revision(revision.id)
        .is_some_and(|r| needs_build(r));
    if !is_needed || memory.leadership != Leadership::Leading {
        return None;
    }
    let node = choose(&memory, &core.config, Some(&revision))?;
    order(&mut memory, &revision, node, 1, now);
    Some(revision.id)
}

fn order(memory: &mut Memory, revision: &Revision, node: NodeId, attempts: u32, now: Timestamp) {
    let id = BuildId(Uuid::new_v4());
    let order = v1::BuildOrder {
        build: id.to_wire(),
        revision: Some(revision.id.into()),
        settings: Some(revision.settings.clone().into()),
    };
    let delta = v1::AssignmentDelta {
        builds_upsert: vec![order.clone()],
        ..Default::default()
    };
    let build = Build {
        id,
        node,
        started: now,
        attempts,
        order,
        result: None,
    };
    memory.builds.insert(revision.id, build);
    memory.order(node, delta);
}

fn reassign(memory: &mut Memory, config: &LeaderConfig, revision: RevisionId, now: Timestamp) {
    let Some(node) = choose(memory, config, None) else {
        return;
    };
    let Some(build) = memory.builds.get_mut(&revision) else {
        return;
    };
    // Another id: what the lost node may still send belongs to no build.
    let id = BuildId(Uuid::new_v4());
    build.order.build = id.to_wire();
    (build.id, build.node, build.started) = (id, node, now);
    build.attempts += 1;
    let order = build.order.clone();
    memory.order(
        node,
        v1::AssignmentDelta {
            builds_upsert: vec![order],
            ..Default::default()
        },
    );
}

/// The node with the fewest builds; among equals one that has the runtime's image.
fn choose(memory: &Memory, config: &LeaderConfig, revision: Option<&Revision>) -> Option<NodeId> {
    let mut load: BTreeMap<NodeId, usize> = BTreeMap::new();
    for build in memory.builds.values().filter(|b| b.result.is_none()) {
        *load.entry(build.node).or_default() += 1;
    }
    memory
        .inputs
        .iter()
        .filter(|(_, node)| node.alive && node.reachable && node.schedulable)
        .map(|(id, node)| {
            let image = revision.is_some_and(|r| node.images.contains(&r.settings.runtime));
            (load.get(id).copied().unwrap_or(0), !image, *id)
        })
        .filter(|(load, ..)| *load < config.builds_per_node)
        .min()
        .map(|(_, _, id)| id)
}

async fn finish(
    core: &Core,
    revision: RevisionId,
    write: WriteId,
    result: Result<BuildOutput, String>,
) {
    let finished = result.is_ok();
    let body = match result {
        Ok(output) => match stored(core, &output).await {
            Held::Yes => Body::FinishBuild { revision, output },
            Held::Nowhere(digest) => Body::FailBuild {
                revision,
                reason: format!("the build's result was not uploaded: artifact {digest}"),
            },
            Held::TooFew {
                digest,
                have,
                needed,
            } => {
                tracing::warn!(%revision, %digest, have, needed, "a build's result has too few copies");
                return;
            }
        },
        Err(reason) => Body::FailBuild {
            revision,
            reason: coracle_state::clip(&reason),
        },
    };
    let failed = match &body {
        Body::FailBuild { reason, .. } => Some(reason.clone()),
        _ => None,
    };
    // Before the write: whoever sees the build ended finds the whole log.
    end_log(core, revision).await;
    match core.write(write, body).await {
        Ok(()) => {
            tracing::info!(%revision, failed, "build ended");
            metrics::built(finished && failed.is_none());
            take_off(&mut core.memory(), revision);
            core.plan_wake.notify_one();
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), %revision, "a build's end was not written");
        }
    }
}

async fn end_log(core: &Core, revision: RevisionId) {
    if let Err(error) = core.build_logs.end(revision).await {
        tracing::error!(error = %chain(&error), %revision, "build log not finished");
    }
}

async fn stored(core: &Core, output: &BuildOutput) -> Held {
    let digests: Vec<_> = [Some(output.code), output.dependencies]
        .into_iter()
        .flatten()
        .collect();
    let deadline = tokio::time::Instant::now() + core.config.write_deadline;
    core.copies.held(&digests, deadline).await
}

fn take_off(memory: &mut Memory, revision: RevisionId) {
    if let Some(build) = memory.builds.remove(&revision) {
        let delta = v1::AssignmentDelta {
            builds_remove: vec![build.id.to_wire()],
            ..Default::default()
        };
        memory.order(build.node, delta);
    }
}

fn needs_build(revision: &Revision) -> bool {
    matches!(revision.stage, Stage::Received | Stage::Building)
}

/// An agent says how a build ended. One that was given to somebody else meanwhile says nothing.
pub(crate) fn result(memory: &mut Memory, wire: v1::BuildResult) -> Result<bool, ConvertError> {
    let id = BuildId::from_wire("build", wire.build)?;
    let revision: RevisionId = required("revision", wire.revision)?;
    let output: Option<BuildOutput> = wire.output.map(TryInto::try_into).transpose()?;
    let Some(build) = memory.builds.get_mut(&revision).filter(|b| b.id == id) else {
        return Ok(false);
    };
    if build.result.is_none() {
        let result = output.ok_or(wire.failure);
        build.result = Some((fresh_write(), result));
    }
    Ok(true)
}

/// Whether this node is building that now.
pub(crate) fn is_building(
    memory: &Memory,
    node: NodeId,
    id: BuildId,
    revision: RevisionId,
) -> bool {
    memory
        .builds
        .get(&revision)
        .is_some_and(|b| b.id == id && b.node == node)
}
