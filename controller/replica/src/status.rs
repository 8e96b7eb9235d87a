//! What a member knows of itself and its group.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub id: u64,
    pub role: Role,
    pub term: u64,
    /// As far as this member knows.
    pub leader: Option<u64>,
    pub committed: u64,
    pub applied: u64,
    /// It leads *and* has applied an entry of its own term, and with it everything that any
    /// earlier leader acknowledged. Before that a leader's state may be old.
    pub caught_up: bool,
}

impl Status {
    /// The term in which this member leads with an up-to-date state; None while it does not. The
    /// work of a leader starts when this becomes Some and ends when it changes.
    pub fn leading(&self) -> Option<u64> {
        self.caught_up.then_some(self.term)
    }
}
