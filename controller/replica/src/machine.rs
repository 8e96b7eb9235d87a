//! The replicated state as this crate sees it: something that eats commands in order.

use std::error::Error;

/// Any error of the state machine; shown to the operator, never interpreted.
pub type MachineError = Box<dyn Error + Send + Sync>;

/// One committed command.
#[derive(Debug, Clone, Copy)]
pub struct Command<'a> {
    /// Its place in the log; rises with every command, with gaps.
    pub index: u64,
    /// The term of the leader that proposed it.
    pub term: u64,
    pub bytes: &'a [u8],
}

/// The replicated state machine. Only the replica's own thread touches it; whatever readers need
/// is published from [`Machine::batch_applied`].
///
/// **Apply must be a pure function of the state and the command**: no clock, no randomness, no
/// I/O. After a restart the same commands are applied again, from the last snapshot on.
pub trait Machine: Send + 'static {
    /// What the proposer gets, and the observer sees.
    type Response: Send + 'static;

    /// Applies one command. An error means that this program cannot know what the state should be
    /// (a command of a newer version, say): the replica stops, since skipping it would make
    /// this replica's state differ from the others'. A command that is understood and refused
    /// (name already used) is a response, not an error.
    fn apply(&mut self, command: Command<'_>) -> Result<Self::Response, MachineError>;

    /// Called after each batch of applied entries, before any of their proposers is answered: the
    /// place to publish a view. So whoever reads the view after their write was answered sees it.
    /// Also called once at start with the state as recovered.
    fn batch_applied(&mut self, index: u64);

    /// The whole state, to be read by `restore` on any replica of this or a later version. Runs
    /// on the replica's thread, so nothing is committed meanwhile.
    fn snapshot(&self) -> Vec<u8>;

    /// Replaces the state.
    fn restore(&mut self, snapshot: &[u8]) -> Result<(), MachineError>;
}

/// An applied command as the observer sees it.
#[derive(Debug)]
pub struct Applied<'a, R> {
    pub index: u64,
    pub term: u64,
    /// Whether this replica led when it applied the command. Only then should effects be carried
    /// out. A command may be applied while leading that an earlier leader proposed, and no command
    /// that is replayed at start counts as led; so effects must follow from the state as well, and
    /// this is only the fast path.
    pub leading: bool,
    pub response: &'a R,
}

/// Sees every applied response, in order, on the replica's thread, after
/// [`Machine::batch_applied`] and before the proposer. Must not block.
pub type Observer<R> = Box<dyn FnMut(Applied<'_, R>) + Send>;
