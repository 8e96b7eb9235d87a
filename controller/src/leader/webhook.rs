//! Tells whoever adds and takes away machines: an HTTP POST when room is short or nodes are idle.
//!
//! Sent by the leader only. A notice that cannot be delivered is tried again for a while and then
//! dropped: what goes on is told again anyway.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use coracle_base::{Backoff, Shutdown};
use coracle_model::{NodeId, Timestamp};
use coracle_planner::{CapacityWatch, Notice, capacity::Standing};
use coracle_state::View;
use http::{Request, Uri, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::memory::{Leadership, Memory};
use crate::{
    config::Webhook,
    core::{Core, chain},
};

/// Notices that wait for a receiver that does not answer; more are dropped, with a warning.
const QUEUE: usize = 16;
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 8;
/// A refusal by the scheduler counts as a shortage for this long: gateways with parked requests ask
/// again each second.
const REFUSED_MS: u64 = 5_000;

pub(crate) async fn run(core: Arc<Core>, hook: Webhook, shutdown: Shutdown) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let delivery = deliver(hook.clone(), queue, shutdown.clone());
    shutdown.spawn("leader: webhook delivery", delivery);
    let mut watch = CapacityWatch::default();
    loop {
        tokio::select! {
            () = tokio::time::sleep(core.config.tick) => {}
            () = shutdown.requested() => return,
        }
        let now = core.now();
        let notices = {
            let memory = core.memory();
            if memory.leadership != Leadership::Leading {
                // Another leader tells; and this one begins anew should it lead again.
                watch = CapacityWatch::default();
                continue;
            }
            let notices = watch.look(&hook.capacity, now, &standing(&memory, now));
            let view = core.view();
            let body = |notice| body(&memory, &view, &core.cluster_id, now, notice);
            notices.into_iter().map(body).collect::<Vec<_>>()
        };
        for notice in notices {
            tracing::info!(%notice, "capacity notice");
            if sender.try_send(notice).is_err() {
                tracing::warn!("a capacity notice was dropped: the receiver does not keep up");
            }
        }
    }
}

fn standing(memory: &Memory, now: Timestamp) -> Standing {
    let open = memory.nodes.iter().filter(|(id, entry)| {
        let input = memory.inputs.get(id);
        entry.session.is_some() && input.is_some_and(|input| input.schedulable && input.alive)
    });
    let open: Vec<_> = open.collect();
    let is_idle = |id: &NodeId, instances: bool| {
        instances
            && !memory
                .builds
                .values()
                .any(|b| b.node == *id && b.result.is_none())
    };
    Standing {
        is_short: missing(memory, now).next().is_some(),
        idle: open
            .iter()
            .filter(|(id, entry)| is_idle(id, entry.instances.is_empty() && entry.running == 0))
            .map(|(id, _)| **id)
            .collect(),
        open: open.len(),
    }
}

/// Functions with too few instances for want of room, and why.
fn missing(
    memory: &Memory,
    now: Timestamp,
) -> impl Iterator<Item = (coracle_model::FunctionId, &str)> {
    memory.functions.iter().filter_map(move |(id, function)| {
        let refused = function.refused.as_ref();
        let refused = refused.filter(|(at, _)| now.since(*at) < REFUSED_MS);
        let reason = function
            .shortage
            .as_ref()
            .or(refused.map(|(_, reason)| reason))?;
        Some((*id, reason.as_str()))
    })
}

fn body(memory: &Memory, view: &View, cluster: &str, now: Timestamp, notice: Notice) -> Value {
    match notice {
        Notice::Short { since } => {
            let named = |(id, reason): (_, &str)| {
                let function = view.function_ref(&view.function(id)?.function);
                Some(json!({
                    "namespace": function.namespace.as_str(),
                    "function": function.name.as_str(),
                    "reason": reason,
                }))
            };
            let functions: Vec<_> = missing(memory, now).filter_map(named).collect();
            json!({
                "event": "capacity_short",
                "cluster": cluster,
                "at": now.rfc3339(),
                "since": since.rfc3339(),
                "functions": functions,
            })
        }
        Notice::Idle { nodes } => {
            let named = |id: &NodeId| {
                let entry = memory.nodes.get(id)?;
                Some(json!({"id": id.to_string(), "name": entry.node.name}))
            };
            json!({
                "event": "capacity_idle",
                "cluster": cluster,
                "at": now.rfc3339(),
                "nodes": nodes.iter().filter_map(named).collect::<Vec<_>>(),
            })
        }
    }
}

async fn deliver(hook: Webhook, mut queue: mpsc::Receiver<Value>, shutdown: Shutdown) {
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    loop {
        let notice = tokio::select! {
            notice = queue.recv() => notice,
            () = shutdown.requested() => return,
        };
        let Some(notice) = notice else { return };
        let body = Bytes::from(notice.to_string());
        let mut backoff = Backoff::new(hook.retry_first, hook.retry_most);
        for attempt in 1..=ATTEMPTS {
            let posted = tokio::select! {
                posted = post(&client, &hook.url, body.clone()) => posted,
                () = shutdown.requested() => return,
            };
            match posted {
                Ok(()) => break,
                Err(error) => tracing::warn!(error, attempt, url = %hook.url, "capacity notice"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.wait()) => {}
                () = shutdown.requested() => return,
            }
        }
    }
}

async fn post(
    client: &Client<HttpConnector, Full<Bytes>>,
    url: &Uri,
    body: Bytes,
) -> Result<(), String> {
    let request = Request::post(url.clone()).header(CONTENT_TYPE, "application/json");
    let request = request
        .body(Full::new(body))
        .map_err(|error| chain(&error))?;
    let answer = tokio::time::timeout(ANSWER_WITHIN, client.request(request));
    let answer = answer.await.map_err(|_| "no answer in time".to_owned())?;
    let status = answer.map_err(|error| chain(&error))?.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(format!("answered {status}"))
    }
}
