//! Coracle's own JSON API under `/api/v1`. `docs/api/native.md` introduces it; the OpenAPI document
//! is generated from these handlers and served at `/api/v1/openapi.json`.

pub(crate) mod error;
