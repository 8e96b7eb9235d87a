//! The management APIs over a truthful fake of the control plane: the real state machine, with
//! artifacts, instances and logs held in memory.

mod authorisation;
mod cluster;
mod documents;
mod envelope;
mod functions;
mod golden;
mod keys;
mod limits;
mod namespaces;
mod native;
mod nodes;
mod support;
mod tasks;
