//! Whether an order of a controller is taken: by its stamp, and by whether it can be read.

use coracle_model::Stamp;
use coracle_proto::{ConvertError, required, v1};

use crate::{
    desired::Desired,
    ledger::{Fence, Verdict},
};

/// Why an order was not taken, and the session with it ends.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("refused order {given}: {accepted} was accepted before")]
    Stale { given: Stamp, accepted: Stamp },
    #[error("orders between {accepted} and {given} were missed")]
    Gap { given: Stamp, accepted: Stamp },
    #[error("cannot read the controller's message")]
    Malformed(#[source] ConvertError),
}

/// The whole of what is wanted, and the stamp under which it is to be accepted.
pub fn snapshot(fence: &Fence, wire: v1::Assignment) -> Result<(Stamp, Desired), Refused> {
    let stamp: Stamp = required("stamp", wire.stamp).map_err(Refused::Malformed)?;
    check(fence, fence.snapshot(stamp), stamp)?;
    let desired = Desired::from_snapshot(wire).map_err(Refused::Malformed)?;
    Ok((stamp, desired))
}

/// The stamp of a change. `followed`: this session has shown its snapshot.
pub fn delta(fence: &Fence, followed: bool, wire: &v1::AssignmentDelta) -> Result<Stamp, Refused> {
    let stamp: Stamp = required("stamp", wire.stamp).map_err(Refused::Malformed)?;
    let verdict = if followed {
        fence.delta(stamp)
    } else {
        Verdict::Gap
    };
    check(fence, verdict, stamp)?;
    Ok(stamp)
}

fn check(fence: &Fence, verdict: Verdict, given: Stamp) -> Result<(), Refused> {
    let accepted = fence.accepted();
    match verdict {
        Verdict::Accept => Ok(()),
        Verdict::Stale => Err(Refused::Stale { given, accepted }),
        Verdict::Gap => Err(Refused::Gap { given, accepted }),
    }
}
