//! Sessions with agents.

use std::{sync::Arc, time::Duration};

use coracle_base::Shutdown;
use coracle_identity::Peer;
use coracle_model::{BuildId, NodeId, Refusal, RevisionId};
use coracle_proto::{
    ConvertError, Wire as _, required,
    v1::{self, agent_message::Body},
};
use coracle_state::{Body as State, RegisterNode};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::write_failed;
use crate::{
    core::{Core, chain, fresh_write},
    leader::{builds, desk::NotLeading, nodes::NotAdmitted, reports::Report},
};

/// Orders on their way to one agent. An agent that lets this many pile up is cut, and gets a
/// snapshot when it comes back.
const ORDERS: usize = 1_024;
const HELLO_WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct Agents {
    pub(crate) core: Arc<Core>,
    pub(crate) shutdown: Shutdown,
}

#[tonic::async_trait]
impl v1::agents_server::Agents for Agents {
    type SessionStream = ReceiverStream<Result<v1::ControllerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.core.require_leader()?;
        let peer = Peer::of(&request);
        let mut inbound = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WITHIN, inbound.message());
        let hello = hello
            .await
            .map_err(|_| Status::deadline_exceeded("no hello"))??;
        let Some(Body::Hello(hello)) = hello.and_then(|message| message.body) else {
            return Err(Status::invalid_argument("a session begins with a hello"));
        };
        let report = Report::try_from(hello)?;
        let node = report.node.id;
        if !peer.is_node(node) {
            return Err(Status::permission_denied(format!(
                "this agent's certificate is not that of node {node}"
            )));
        }
        let name = report.node.name.clone();
        if let Some(register) = self.core.admit(&report).map_err(not_admitted)? {
            let replaces = register.replaces;
            self.register(register).await?;
            tracing::info!(%node, name, ?replaces, "node registered");
        }
        let (sender, orders) = mpsc::channel(ORDERS);
        // Weak: the session ends when the leader's books let go of it.
        let aside = sender.downgrade();
        let session = self
            .core
            .hello(self.core.now(), report, sender)
            .map_err(|NotLeading| self.core.not_leader())?
            .ok_or_else(|| Status::internal("a new channel was full"))?;
        tracing::info!(%node, name, session, "agent connected");
        let conversation = Conversation {
            core: Arc::clone(&self.core),
            node,
            session,
        };
        let shutdown = self.shutdown.clone();
        self.shutdown.spawn("agent session", async move {
            tokio::select! {
                () = conversation.listen(inbound) => {}
                () = conversation.tell(aside) => {}
                () = shutdown.requested() => {}
            }
            conversation.core.goodbye(node, session);
        });
        Ok(Response::new(ReceiverStream::new(orders)))
    }
}

impl Agents {
    /// Durable before the agent is told anything: a later leader must know whom to wait for.
    async fn register(&self, register: RegisterNode) -> Result<(), Status> {
        let write = self
            .core
            .write(fresh_write(), State::RegisterNode(register));
        match write.await {
            Ok(()) => Ok(()),
            // Its situation changed since it was looked at; the agent comes again.
            Err(error) => match write_failed(error)? {
                Refusal::AlreadyExists(text) => Err(Status::already_exists(text)),
                refusal => Err(Status::permission_denied(refusal.to_string())),
            },
        }
    }
}

fn not_admitted(error: NotAdmitted) -> Status {
    tracing::warn!(%error, "an agent was turned away");
    match error {
        NotAdmitted::Removed(_) => Status::permission_denied(error.to_string()),
        NotAdmitted::NameTaken { .. } => Status::already_exists(error.to_string()),
        NotAdmitted::NameHeld { .. } => Status::unavailable(error.to_string()),
        NotAdmitted::Invalid(_) => Status::invalid_argument(error.to_string()),
        NotAdmitted::Deposed => crate::forward::Failed::Elsewhere.into(),
    }
}

struct Conversation {
    core: Arc<Core>,
    node: NodeId,
    session: u64,
}

impl Conversation {
    /// Where the controllers are, at first and as it changes. Ends with the session.
    async fn tell(&self, to: mpsc::WeakSender<Result<v1::ControllerMessage, Status>>) {
        let mut controllers = self.core.controllers.subscribe();
        controllers.mark_changed();
        while controllers.changed().await.is_ok() {
            let message = v1::ControllerMessage {
                body: None,
                controllers: controllers.borrow_and_update().clone(),
            };
            if message.controllers.is_empty() {
                continue;
            }
            let Some(to) = to.upgrade() else { return };
            if to.send(Ok(message)).await.is_err() {
                return;
            }
        }
    }

    async fn listen(&self, mut inbound: Streaming<v1::AgentMessage>) {
        let reason = loop {
            let body = match inbound.message().await {
                Ok(Some(message)) => message.body,
                Ok(None) => break "the agent ended it".to_owned(),
                Err(status) => break status.to_string(),
            };
            if !self.core.memory().is_current(self.node, self.session) {
                break "another one took its place".to_owned();
            }
            if let Err(error) = self.handle(body).await {
                break format!("malformed message: {error}");
            }
        };
        tracing::info!(node = %self.node, session = self.session, reason, "session ended");
    }

    async fn handle(&self, body: Option<Body>) -> Result<(), ConvertError> {
        match body.ok_or_else(|| ConvertError::missing("body"))? {
            Body::Hello(report) | Body::Report(report) => self.report(report.try_into()?)?,
            Body::BuildLog(progress) => self.progress(progress).await?,
            Body::BuildResult(result) => {
                if builds::result(&mut self.core.memory(), result)? {
                    self.core.build_wake.notify_one();
                }
            }
        }
        Ok(())
    }

    fn report(&self, report: Report) -> Result<(), ConvertError> {
        if report.node.id != self.node {
            return Err(ConvertError::new("node.id", "is not the session's"));
        }
        self.core.desk.report(self.core.now(), report);
        Ok(())
    }

    async fn progress(&self, progress: v1::BuildProgress) -> Result<(), ConvertError> {
        let id = BuildId::from_wire("build", progress.build)?;
        let revision: RevisionId = required("revision", progress.revision)?;
        if !builds::is_building(&self.core.memory(), self.node, id, revision) {
            return Ok(());
        }
        if let Err(error) = self.core.build_logs.append(revision, progress.data).await {
            tracing::error!(error = %chain(&error), %revision, "build log not written");
        }
        Ok(())
    }
}
