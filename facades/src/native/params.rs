//! Parameters as the OpenAPI document shows them. [`crate::query`] and [`crate::path`] parse them.

use utoipa::IntoParams;

#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters to the OpenAPI document")]
pub(crate) struct PageParams {
    /// 1 to 1000; 1000 if absent.
    limit: Option<u32>,
    /// 0 if absent.
    offset: Option<u32>,
    /// name.asc, name.desc, created_at.asc or created_at.desc; name.asc if absent.
    order_by: Option<String>,
    /// A part of the name.
    search: Option<String>,
}

#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters to the OpenAPI document")]
pub(crate) struct LogParams {
    /// How many of the newest lines; 100 if absent, up to 100000.
    tail: Option<u32>,
    /// Go on with new lines as they come, as server-sent events.
    follow: Option<bool>,
    /// Only lines of this request.
    request_id: Option<String>,
    /// Only lines of this instance.
    instance: Option<String>,
    /// Only lines from this time on (RFC 3339).
    since: Option<String>,
}

#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes parameters to the OpenAPI document")]
pub(crate) struct BuildLogParams {
    /// The newest one if absent.
    revision: Option<u32>,
    /// Go on until the build ends.
    follow: Option<bool>,
}

macro_rules! path_params {
    ($($(#[$doc:meta])* $name:ident { $($field:ident),* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, IntoParams)]
        #[into_params(parameter_in = Path)]
        #[expect(dead_code, reason = "describes parameters to the OpenAPI document")]
        pub(crate) struct $name { $($field: String),* }
    )*};
}

path_params! {
    ProjectPath { project }
    NamespacePath { project, namespace_name }
    FunctionPath { project, namespace_name, function_name }
    InvokePath { project, namespace_name, function_name, path }
    KeyPath { project, key_name }
    TokenPath { token_id }
    NodePath { node_name }
    MemberPath { member_id }
}
