//! Both shims against the same cases: CONTRACT.md as tests. Runs the shims as plain processes with
//! `python3` and `node` (20.19 or later) from the PATH, or what CORACLE_TEST_PYTHON and
//! CORACLE_TEST_NODE name; needs no root.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod client;
mod conventions;
mod life;
mod output;
mod streams;

/// One test a language for each function.
macro_rules! for_both {
    ($($case:ident),* $(,)?) => {
        mod python {
            $(#[test] fn $case() { super::$case(crate::client::Language::Python); })*
        }
        mod node {
            $(#[test] fn $case() { super::$case(crate::client::Language::Node); })*
        }
    };
}
pub(crate) use for_both;
