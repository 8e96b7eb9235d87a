//! What only the leader can do, asked of any controller: done here or, for the caller, at the leader.

use std::{future::Future, time::Duration};

use coracle_replica::ProposeError;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Status, metadata::MetadataMap, transport::Channel};

use crate::core::Core;

/// Who leads, on the status with which a follower refuses.
pub(crate) const LEADER_KEY: &str = "coracle-leader";
/// And where that one is, when this is known.
const LEADER_ADDRESS_KEY: &str = "coracle-leader-address";
/// Which member handed a request on. It is not handed on again.
const FORWARDED_KEY: &str = "coracle-forwarded";
const TIMEOUT_KEY: &str = "grpc-timeout";
/// Between two attempts while nothing is known to have changed.
const PAUSE: Duration = Duration::from_millis(100);

/// What a caller wants of the leader: until when, and whether it came through another controller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errand {
    pub(crate) deadline: Instant,
    forwarded: bool,
}

/// How one attempt failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Nothing was done there; somebody else leads.
    Elsewhere,
    /// It may have been done.
    Unknown(Status),
    Final(Status),
}

impl Errand {
    /// Of a request that may take as long as its caller says, and at most `limit`.
    pub(crate) fn of<T>(request: &Request<T>, limit: Duration) -> Self {
        let asked = timeout_of(request.metadata()).unwrap_or(limit);
        Self {
            deadline: Instant::now() + asked.min(limit),
            forwarded: request.metadata().contains_key(FORWARDED_KEY),
        }
    }

    /// The same, from this member to the leader.
    fn carry<T>(&self, message: T, me: u64) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline.saturating_duration_since(Instant::now()));
        request.metadata_mut().insert(FORWARDED_KEY, me.into());
        request
    }
}

/// At most eight digits and a unit, as gRPC has it.
fn timeout_of(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get(TIMEOUT_KEY)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

impl From<Status> for Failed {
    /// Of an answer from another controller. One that says who leads, or that it does not, did
    /// nothing.
    fn from(status: Status) -> Self {
        if is_not_leader(&status) {
            return Self::Elsewhere;
        }
        match status.code() {
            Code::Aborted
            | Code::Unavailable
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unknown => Self::Unknown(status),
            _ => Self::Final(status),
        }
    }
}

/// For whoever does not go to the leader, since only the leader comes that far.
impl From<Failed> for Status {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Elsewhere => Self::unavailable(NOT_LEADER),
            Failed::Unknown(status) | Failed::Final(status) => status,
        }
    }
}

impl From<ProposeError> for Failed {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::NotLeader { .. } => Self::Elsewhere,
            ProposeError::Unknown(_) => Self::Unknown(Status::aborted(text)),
            ProposeError::Busy | ProposeError::Stopped => Self::Final(Status::unavailable(text)),
            ProposeError::Empty | ProposeError::TooLarge { .. } => {
                Self::Final(Status::internal(text))
            }
        }
    }
}

/// The text is the marker where nobody is known to lead: there is no other such status.
const NOT_LEADER: &str = "this controller does not lead";

fn is_not_leader(status: &Status) -> bool {
    status.code() == Code::Unavailable
        && (status.metadata().contains_key(LEADER_KEY) || status.message() == NOT_LEADER)
}

enum Place {
    Here,
    There(Channel),
    Nowhere,
}

impl Core {
    /// The status with which this controller says that another one leads, and where.
    pub(crate) fn not_leader(&self) -> Status {
        let mut status = Status::unavailable(NOT_LEADER);
        let Some(leader) = self.replica.status().borrow().leader else {
            return status;
        };
        let metadata = status.metadata_mut();
        metadata.insert(LEADER_KEY, leader.into());
        let address = self.me.table.reachable(leader);
        if let Some(address) = address.and_then(|address| address.parse().ok()) {
            metadata.insert(LEADER_ADDRESS_KEY, address);
        }
        status
    }

    fn place(&self, errand: &Errand) -> Place {
        let leader = self.replica.status().borrow().leader;
        if errand.forwarded || leader == Some(self.me.id) {
            return Place::Here;
        }
        let address = leader.and_then(|leader| self.me.table.get(leader));
        address.map_or(Place::Nowhere, |address| Place::There(address.channel()))
    }

    /// Where the leader's memory is wanted and this controller's own answer would do without it:
    /// the leader, unless this one leads, or it is not known who does.
    pub(crate) fn elsewhere<T>(&self, request: &Request<T>) -> Option<(Channel, Errand)> {
        let errand = Errand::of(request, self.config.read_deadline);
        match self.place(&errand) {
            Place::There(channel) => Some((channel, errand)),
            Place::Here | Place::Nowhere => None,
        }
    }

    pub(crate) fn carry<T>(&self, errand: &Errand, message: T) -> Request<T> {
        errand.carry(message, self.me.id)
    }

    /// Does it where the leader is, again after a change of leader, until the deadline. Both ways
    /// must be safe to repeat: a write carries its id. What may have been done and was not answered in time is unknown, not failed.
    pub(crate) async fn at_leader<A, H, T>(
        &self,
        errand: Errand,
        here: impl Fn() -> H,
        there: impl Fn(Channel) -> T,
    ) -> Result<A, Status>
    where
        H: Future<Output = Result<A, Failed>>,
        T: Future<Output = Result<A, Status>>,
    {
        let mut status = self.replica.status();
        let mut doubt = None;
        loop {
            status.mark_unchanged();
            let attempt = match self.place(&errand) {
                Place::Here => here().await,
                Place::There(channel) => match timeout_at(errand.deadline, there(channel)).await {
                    Ok(answer) => answer.map_err(Failed::from),
                    Err(_) => Err(Failed::Unknown(Status::aborted("the deadline passed"))),
                },
                Place::Nowhere => Err(Failed::Elsewhere),
            };
            match attempt {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(status)) => return Err(status),
                Err(Failed::Unknown(status)) => doubt = Some(status),
                Err(Failed::Elsewhere) => {}
            }
            let pause = (Instant::now() + PAUSE).min(errand.deadline);
            if errand.forwarded || pause >= errand.deadline {
                return Err(match doubt {
                    Some(status) => {
                        Status::aborted(format!("the outcome is unknown: {}", status.message()))
                    }
                    None => self.not_leader(),
                });
            }
            let leader = status.borrow().leader;
            // Ends early when somebody else leads.
            let _ = timeout_at(pause, status.wait_for(|now| now.leader != leader)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_carried() {
        let mut request = Request::new(());
        let limit = Duration::from_secs(10);
        let left = |request: &Request<()>| {
            let errand = Errand::of(request, limit);
            errand.deadline.saturating_duration_since(Instant::now())
        };
        assert!(left(&request) > Duration::from_secs(9));
        request.set_timeout(Duration::from_millis(1_500));
        assert!(left(&request) <= Duration::from_millis(1_500));
        assert!(left(&request) > Duration::from_millis(1_000));
        request.set_timeout(Duration::from_secs(3_000));
        assert!(left(&request) <= limit);
        for bad in ["", "S", "1", "123456789S", "1x", "é"] {
            let mut metadata = MetadataMap::new();
            if let Ok(value) = bad.parse() {
                metadata.insert(TIMEOUT_KEY, value);
            }
            assert_eq!(timeout_of(&metadata), None, "{bad}");
        }
    }

    #[test]
    fn only_what_says_so_was_not_done() {
        let of = |status: Status| Failed::from(status);
        let plain = Status::unavailable(NOT_LEADER);
        assert!(matches!(of(plain), Failed::Elsewhere));
        let mut named = Status::unavailable("x");
        named.metadata_mut().insert(LEADER_KEY, 3_u64.into());
        assert!(matches!(of(named), Failed::Elsewhere));
        let broken = Status::unavailable("connection reset");
        assert!(matches!(of(broken), Failed::Unknown(_)));
        let timed_out = Status::cancelled("timeout expired");
        assert!(matches!(of(timed_out), Failed::Unknown(_)));
        let wrong = Status::invalid_argument("no");
        assert!(matches!(of(wrong), Failed::Final(_)));
    }
}
