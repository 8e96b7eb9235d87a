//! Between Gcore's words and the model. Pure: what has to be looked up is handed in.

mod change;
mod create;
mod fields;
mod view;

pub(super) use change::change;
pub(super) use create::{NewFunction, made_by};
pub(super) use fields::{
    NAME_MAX, description, envs, expire, immutable, key_functions, name, words,
};
pub(super) use view::{function, key, log_entry, namespace, task, task_state, task_type};
