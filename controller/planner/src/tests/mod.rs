//! Tests of whole plans; what belongs to one file is tested in it.

mod plan;
mod simulation;
