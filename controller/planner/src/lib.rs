//! What should run where, as a function of plain values.
//!
//! Nothing here reads a clock, draws an id or does I/O: the leader hands in what it knows and the
//! ids of instances to come, and carries out the [`Plan`] that it gets back. Each decision carries
//! its reason, so that "why is it there, why are there five" is answered from data.
//!
//! All arithmetic is in integers (concurrency in thousandths), so that a recorded decision can be
//! replayed to the same answer.

#![forbid(unsafe_code)]

pub mod backoff;
pub mod capacity;
pub mod config;
pub mod demand;
pub mod drain;
pub mod input;
pub mod nodes;
pub mod place;
pub mod plan;
pub mod scale;
pub mod stems;

#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;

pub use backoff::Failures;
pub use capacity::{CapacityConfig, CapacityWatch, Notice};
pub use config::{BackoffConfig, PlannerConfig, ScalingConfig, StemConfig};
pub use demand::{Demand, DemandSample, GatewayId};
pub use drain::is_last_home;
pub use input::{
    CandidateInput, DrainInput, FunctionInput, Input, InstanceInput, NodeInput, Phase,
    RevisionInput,
};
pub use nodes::{CollectConfig, Collection, Standing, standing, unwatched};
pub use place::{NoRoom, Placement, choose, place};
pub use plan::{Drain, FailedDeploy, Plan, Shortage, Start, plan};
pub use scale::{Decision, ScaleInput, ScaleMemory, decide};
