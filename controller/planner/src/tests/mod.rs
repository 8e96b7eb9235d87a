//! Tests of whole plans; what belongs to one file is tested in it.

mod nodes;
mod plan;
mod simulation;
