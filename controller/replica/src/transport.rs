//! How members' messages leave. Whoever has a network implements it.

/// A raft message, opaque to everything outside this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMessage {
    /// The member it is for.
    pub to: u64,
    /// For that member's [`crate::Replica::deliver`].
    pub bytes: Vec<u8>,
    /// It carries a whole snapshot: send it apart from the others, so that it delays no heartbeat,
    /// and report how that went with [`crate::Replica::report_snapshot`].
    pub snapshot: bool,
}

/// Sends messages to peers. Raft repeats what is lost, so an implementation drops rather than
/// queues without bound, and never blocks: it is called on the replica's thread, between
/// the write of one batch and the next.
pub trait Transport: Send + 'static {
    fn send(&mut self, message: PeerMessage);
}

/// The transport of a group of one.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn send(&mut self, message: PeerMessage) {
        tracing::warn!(
            to = message.to,
            "message to a peer dropped: there is no transport"
        );
    }
}
