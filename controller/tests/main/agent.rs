//! An agent that speaks the session's protocol and runs nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use coracle_model::{
    BuildOutput, ExitReason, InstanceId, InstanceState, NodeId, RevisionId, Stamp, Timestamp,
    node::{Node, Resources},
};
use coracle_proto::{
    Wire as _,
    v1::{
        self, agent_message::Body, agents_client::AgentsClient, controller_message::Body as Order,
        management_client::ManagementClient,
    },
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use uuid::Uuid;

use crate::fixture::wait;

/// How it answers orders. Looked at for each order anew.
#[derive(Debug, Clone)]
pub struct Script {
    /// What a new instance becomes at once; `Starting` leaves it there.
    pub launch: InstanceState,
    /// The end of builds: an output from an upload, or a reason.
    pub build: Result<(), String>,
    pub memory_mib: u32,
    pub labels: BTreeMap<String, String>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            launch: InstanceState::Ready,
            build: Ok(()),
            memory_mib: 4_096,
            labels: BTreeMap::new(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Instance {
    pub revision: RevisionId,
    pub state: InstanceState,
    pub drain: bool,
}

#[derive(Debug, Default)]
struct Seen {
    script: Script,
    id: u128,
    name: String,
    instances: BTreeMap<InstanceId, Instance>,
    stems: BTreeMap<String, u32>,
    accepted: Stamp,
    /// Every instance that was ever ordered.
    ordered: Vec<InstanceId>,
    builds: u32,
}

/// What it knows survives sessions; clones are the same agent.
#[derive(Debug, Clone, Default)]
pub struct Agent(Arc<Mutex<Seen>>);

pub struct Session {
    task: JoinHandle<()>,
    poke: mpsc::Sender<()>,
}

impl Session {
    /// Breaks the stream.
    pub fn cut(self) {
        self.task.abort();
    }

    /// Sends a report of how things stand.
    pub async fn report(&self) {
        self.poke.send(()).await.unwrap();
    }
}

impl Agent {
    pub fn new() -> Self {
        Self::numbered(1)
    }

    /// `node-<n>`, with that id.
    pub fn numbered(n: u128) -> Self {
        Self::named(n, &format!("node-{n}"))
    }

    pub fn named(id: u128, name: &str) -> Self {
        Self(Arc::new(Mutex::new(Seen {
            id,
            name: name.to_owned(),
            ..Seen::default()
        })))
    }

    pub fn id(&self) -> NodeId {
        NodeId(Uuid::from_u128(self.0.lock().unwrap().id))
    }

    /// What the controller says to a hello that it does not take.
    pub async fn refused(&self, channel: &Channel) -> tonic::Status {
        let (sender, messages) = mpsc::channel(4);
        let hello = message(Body::Hello(self.report(1)));
        sender.send(hello).await.unwrap();
        let mut client = AgentsClient::new(channel.clone());
        let opened = client.session(ReceiverStream::new(messages)).await;
        opened.map(|_| ()).expect_err("the hello was taken")
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.0.lock().unwrap().script);
    }

    pub fn instances(&self) -> BTreeMap<InstanceId, Instance> {
        self.0.lock().unwrap().instances.clone()
    }

    /// Those that are neither drained nor ended.
    pub fn live(&self) -> Vec<InstanceId> {
        let live = |i: &Instance| !i.drain && !matches!(i.state, InstanceState::Exited(_));
        self.instances()
            .into_iter()
            .filter(|(_, i)| live(i))
            .map(|(id, _)| id)
            .collect()
    }

    pub fn ordered(&self) -> Vec<InstanceId> {
        self.0.lock().unwrap().ordered.clone()
    }

    pub fn stems(&self) -> BTreeMap<String, u32> {
        self.0.lock().unwrap().stems.clone()
    }

    pub fn builds(&self) -> u32 {
        self.0.lock().unwrap().builds
    }

    /// A running instance ends by itself; the next report says so.
    pub fn exit(&self, id: InstanceId, reason: ExitReason) {
        let mut seen = self.0.lock().unwrap();
        seen.instances.get_mut(&id).unwrap().state = InstanceState::Exited(reason);
    }

    /// It is simply not there any more.
    pub fn lose(&self, id: InstanceId) {
        self.0.lock().unwrap().instances.remove(&id).unwrap();
    }

    pub fn restarted(&self) {
        self.0.lock().unwrap().accepted.sequence = 0;
    }

    pub async fn connect(&self, channel: &Channel) -> Session {
        let (poke, poked) = mpsc::channel(4);
        let (inbound, sender) = wait("a session", || async {
            let (sender, messages) = mpsc::channel(64);
            sender
                .send(message(Body::Hello(self.report(1))))
                .await
                .unwrap();
            let mut client = AgentsClient::new(channel.clone());
            let opened = client.session(ReceiverStream::new(messages)).await;
            opened
                .map(|o| (o.into_inner(), sender))
                .map_err(|status| status.to_string())
        })
        .await;
        let talk = Talk {
            agent: self.clone(),
            management: ManagementClient::new(channel.clone()),
            sender,
            number: 1,
        };
        let task = tokio::spawn(talk.run(inbound, poked));
        Session { task, poke }
    }

    fn report(&self, number: u64) -> v1::Report {
        let seen = self.0.lock().unwrap();
        let instances = seen
            .instances
            .iter()
            .map(|(id, instance)| v1::ObservedInstance {
                id: id.to_wire(),
                revision: Some(instance.revision.into()),
                state: Some(instance.state.clone().into()),
                since: 1,
                memory_mib: 128,
                cpu_millis: 250,
                socket: format!("/run/{id}.sock"),
                concurrency: 1,
            });
        let node = Node {
            id: NodeId(Uuid::from_u128(seen.id)),
            name: seen.name.clone(),
            version: "0".into(),
            labels: seen.script.labels.clone(),
            allocatable: Resources {
                memory_mib: seen.script.memory_mib,
                cpu_millis: 2_000,
            },
            address: "memory:".into(),
            stems: BTreeMap::new(),
            images: vec!["python3.11".parse().unwrap()],
            reported_at: Timestamp(1),
            schedulable: true,
        };
        v1::Report {
            node: Some(node.into()),
            instances: instances.collect(),
            accepted: Some(seen.accepted.into()),
            number,
        }
    }

    fn want(&self, desired: v1::DesiredInstance) {
        let mut seen = self.0.lock().unwrap();
        let spec: coracle_model::InstanceSpec = desired.spec.unwrap().try_into().unwrap();
        let launch = seen.script.launch.clone();
        if !seen.instances.contains_key(&spec.id) {
            seen.ordered.push(spec.id);
        }
        let instance = seen.instances.entry(spec.id).or_insert(Instance {
            revision: spec.revision,
            state: launch,
            drain: false,
        });
        instance.drain = desired.drain;
        if desired.drain && !matches!(instance.state, InstanceState::Exited(_)) {
            // Nothing runs in it, so it ends at once.
            instance.state = InstanceState::Exited(ExitReason::Stopped);
        }
    }
}

struct Talk {
    agent: Agent,
    management: ManagementClient<Channel>,
    sender: mpsc::Sender<v1::AgentMessage>,
    number: u64,
}

impl Talk {
    async fn run(
        mut self,
        mut inbound: tonic::Streaming<v1::ControllerMessage>,
        mut poked: mpsc::Receiver<()>,
    ) {
        loop {
            tokio::select! {
                order = inbound.message() => {
                    let Ok(Some(order)) = order else { return };
                    match order.body.unwrap() {
                        Order::Ack(_) => continue,
                        Order::Snapshot(assignment) => self.snapshot(assignment).await,
                        Order::Delta(delta) => self.delta(delta).await,
                    }
                }
                poke = poked.recv() => if poke.is_none() { return },
            }
            self.number += 1;
            let report = self.agent.report(self.number);
            if self
                .sender
                .send(message(Body::Report(report)))
                .await
                .is_err()
            {
                return;
            }
        }
    }

    async fn snapshot(&mut self, assignment: v1::Assignment) {
        let ids: Vec<_> = assignment
            .instances
            .iter()
            .map(|d| d.spec.as_ref().unwrap().id.clone())
            .collect();
        {
            let mut seen = self.agent.0.lock().unwrap();
            seen.accepted = assignment.stamp.unwrap().try_into().unwrap();
            seen.instances.retain(|id, _| ids.contains(&id.to_wire()));
            seen.stems = assignment.stems;
        }
        for desired in assignment.instances {
            self.agent.want(desired);
        }
        for order in assignment.builds {
            self.build(order).await;
        }
    }

    async fn delta(&mut self, delta: v1::AssignmentDelta) {
        {
            let mut seen = self.agent.0.lock().unwrap();
            let stamp: Stamp = delta.stamp.unwrap().try_into().unwrap();
            let expected = Stamp {
                sequence: seen.accepted.sequence + 1,
                ..seen.accepted
            };
            assert_eq!(stamp, expected, "orders are contiguous");
            seen.accepted = stamp;
            for id in delta.remove {
                seen.instances
                    .remove(&InstanceId::from_wire("id", id).unwrap());
            }
            if delta.stems_changed {
                seen.stems = delta.stems;
            }
        }
        for desired in delta.upsert {
            self.agent.want(desired);
        }
        for order in delta.builds_upsert {
            self.build(order).await;
        }
    }

    async fn build(&mut self, order: v1::BuildOrder) {
        let script = {
            let mut seen = self.agent.0.lock().unwrap();
            seen.builds += 1;
            seen.script.clone()
        };
        let data = Bytes::from_static(b"installing\n");
        let (build, revision) = (order.build, order.revision);
        let progress = v1::BuildProgress {
            build: build.clone(),
            revision: revision.clone(),
            data,
        };
        self.say(Body::BuildLog(progress)).await;
        let (output, failure) = match script.build {
            Ok(()) => {
                let chunk = v1::ArtifactChunk {
                    data: Bytes::from_static(b"built"),
                };
                let stored = self
                    .management
                    .put_artifact(tokio_stream::once(chunk))
                    .await
                    .unwrap();
                let digest = stored.into_inner().digest;
                let code = coracle_model::Digest::from_wire("digest", digest).unwrap();
                let output = BuildOutput {
                    code,
                    dependencies: None,
                    message: "built".into(),
                };
                (Some(output.into()), String::new())
            }
            Err(reason) => (None, reason),
        };
        self.say(Body::BuildResult(v1::BuildResult {
            build,
            revision,
            output,
            failure,
        }))
        .await;
    }

    async fn say(&self, body: Body) {
        // A session that is being cut loses it, as a real one would.
        let _ = self.sender.send(message(body)).await;
    }
}

fn message(body: Body) -> v1::AgentMessage {
    v1::AgentMessage { body: Some(body) }
}
