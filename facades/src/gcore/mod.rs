//! Gcore's FaaS API. `docs/api/gcore.md` lists every field and route and what becomes of it.

pub(crate) mod error;
mod flavor;
mod functions;
mod keys;
mod logs;
mod map;
mod namespaces;
mod render;
mod replay;
mod routes;
mod scope;
mod tasks;
mod wire;

pub use routes::route_list;
pub(crate) use routes::router;
