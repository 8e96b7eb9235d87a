//! A client of the native API over plain HTTP.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};

use crate::{
    data,
    error::{CliError, chain},
    settings,
};

/// The most that the server gives at once.
const PAGE: usize = 1_000;

/// How to find the server, from flags and environment.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Target {
    /// API listener of the server [default: a server on this machine, found by its data directory]
    #[arg(long, env = "CORACLE_URL", global = true, value_name = "URL")]
    url: Option<String>,
    /// Token [default: the admin token of a server on this machine]
    #[arg(
        long,
        env = "CORACLE_TOKEN",
        global = true,
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// Data directory of a server on this machine
    #[arg(long, env = "CORACLE_DATA", global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Project
    #[arg(
        long,
        env = "CORACLE_PROJECT",
        global = true,
        default_value = "default"
    )]
    pub(crate) project: String,
    /// Print every HTTP exchange to standard error
    #[arg(long, global = true)]
    debug_http: bool,
}

#[derive(Debug)]
pub(crate) struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    token: String,
    pub(crate) project: String,
    debug: bool,
}

impl Target {
    pub(crate) fn connect(&self) -> Result<Api, CliError> {
        let data = match &self.data {
            Some(data) => data.clone(),
            None => settings::default_data().map_err(CliError::Usage)?,
        };
        let base = match &self.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => data::read_server_file(&data)
                .map(|server| server.api)
                .ok_or_else(|| {
                    CliError::Unreachable(format!(
                        "no server has run in {}; start one with `coracle up`, or set CORACLE_URL",
                        data.display()
                    ))
                })?,
        };
        if !base.starts_with("http://") {
            return Err(CliError::Usage(format!(
                "CORACLE_URL: {base:?} must start with http://"
            )));
        }
        let token = match &self.token {
            Some(token) => token.clone(),
            None if !is_here(&base, &data) => {
                return Err(CliError::Unauthorized(format!(
                    "no token: set CORACLE_TOKEN (the one of this machine's server is not sent to \
                     {base})"
                )));
            }
            None => data::read_token(&data).map_err(|error| {
                CliError::Unauthorized(format!(
                    "no token: set CORACLE_TOKEN (the token file of {} cannot be read: {error})",
                    data.display()
                ))
            })?,
        };
        Ok(Api {
            client: Client::builder(TokioExecutor::new()).build_http(),
            base,
            token,
            project: self.project.clone(),
            debug: self.debug_http,
        })
    }
}

/// Whether what answers there is on this machine, so that the token file may be its own.
fn is_here(base: &str, data: &Path) -> bool {
    if data::read_server_file(data).is_some_and(|server| server.api == base) {
        return true;
    }
    let uri: Option<Uri> = base.parse().ok();
    uri.as_ref().and_then(Uri::host).is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

impl Api {
    /// The API listener, without a trailing slash.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// A path below the project: `namespaces/...`.
    pub(crate) fn in_project(&self, rest: &str) -> String {
        format!("/api/v1/projects/{}/{rest}", escape(&self.project))
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, CliError> {
        self.json(Method::GET, path, None).await
    }

    /// All of a list, however many pages it has.
    pub(crate) async fn list(&self, path: &str) -> Result<Value, CliError> {
        let mut items = Vec::new();
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = format!("{path}{separator}limit={PAGE}&offset={}", items.len());
            let mut page = self.get(&page).await?;
            let count = page.get("count").and_then(Value::as_u64).unwrap_or(0);
            let Some(Value::Array(found)) = page.get_mut("items").map(Value::take) else {
                return Err(CliError::Failed("the server's answer is no list".into()));
            };
            let is_last = found.is_empty() || (items.len() + found.len()) as u64 >= count;
            items.extend(found);
            if is_last {
                return Ok(json!({"items": items}));
            }
        }
    }

    /// Sends JSON, wants success, and returns the answer's JSON (null when it has no body).
    pub(crate) async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, CliError> {
        let bytes = body
            .map(|value| Bytes::from(value.to_string()))
            .unwrap_or_default();
        let mut request = Request::builder().method(method);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let response = self.send(request, path, bytes).await?;
        let response = refuse_errors(response).await?;
        let bytes = collect(response).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|error| CliError::Failed(format!("the server's answer is not JSON: {error}")))
    }

    /// Sends a request as it is and returns whatever came back.
    pub(crate) async fn send(
        &self,
        request: http::request::Builder,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, CliError> {
        let uri: Uri = format!("{}{path}", self.base)
            .parse()
            .map_err(|error| CliError::Usage(format!("{path:?} is no URL path: {error}")))?;
        let request = request
            .uri(uri)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(
                header::USER_AGENT,
                concat!("coracle/", env!("CARGO_PKG_VERSION")),
            )
            .body(Full::new(body))
            .map_err(|error| CliError::Usage(format!("not a valid request: {error}")))?;
        if self.debug {
            eprintln!("> {} {}", request.method(), request.uri());
        }
        let response = self.client.request(request).await.map_err(|error| {
            CliError::Unreachable(format!(
                "no server answers at {}: {}",
                self.base,
                chain(&error)
            ))
        })?;
        if self.debug {
            eprintln!("< {}", response.status());
        }
        Ok(response)
    }
}

/// One segment of a path, or one value of a query, with everything escaped that would end it or mean
/// something else there: what a name holds must not choose what is called.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

pub(crate) async fn collect(response: Response<Incoming>) -> Result<Bytes, CliError> {
    response
        .into_body()
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| CliError::Failed(format!("the answer broke off: {}", chain(&error))))
}

/// Turns an error answer of the platform, of the native API or of an invocation, into the command's
/// error.
pub(crate) async fn refuse_errors(
    response: Response<Incoming>,
) -> Result<Response<Incoming>, CliError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let bytes = collect(response).await?;
    let problem: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let text = |key: &str| problem.get(key).and_then(Value::as_str);
    let mut message = text("detail")
        .or_else(|| text("message"))
        .or_else(|| text("title"))
        .map_or_else(|| format!("the server answered {status}"), str::to_owned);
    if let Some(field) = text("field") {
        message = format!(
            "{field}: {}",
            message.trim_start_matches(&format!("{field}: "))
        );
    }
    if let Some(id) = text("request_id") {
        message.push_str(&format!(" (request {id})"));
    }
    Err(match status {
        StatusCode::NOT_FOUND => CliError::NotFound(message),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => CliError::Unauthorized(message),
        StatusCode::CONFLICT => CliError::Conflict(message),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => CliError::Usage(message),
        _ => CliError::Failed(message),
    })
}

#[cfg(test)]
impl Api {
    pub(crate) fn at(address: std::net::SocketAddr) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            base: format!("http://{address}"),
            token: "id$secret".to_owned(),
            project: "default".to_owned(),
            debug: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::Query, routing::get};

    use super::*;

    #[test]
    fn the_token_of_this_machine_stays_on_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(data::TOKEN_FILE), "id$secret\n").unwrap();
        let to = |url: &str, token: Option<&str>| {
            let target = Target {
                url: Some(url.to_owned()),
                token: token.map(str::to_owned),
                data: Some(dir.path().to_owned()),
                project: "default".to_owned(),
                debug_http: false,
            };
            target.connect().map(|api| api.token)
        };
        for here in [
            "http://127.0.0.1:1",
            "http://localhost:1/",
            "http://[::1]:1",
        ] {
            assert_eq!(to(here, None).unwrap(), "id$secret");
        }
        for elsewhere in ["http://example.org", "http://10.0.0.1:8081"] {
            assert!(matches!(
                to(elsewhere, None),
                Err(CliError::Unauthorized(_))
            ));
            assert_eq!(to(elsewhere, Some("theirs")).unwrap(), "theirs");
        }
        let server = r#"{"api":"http://10.0.0.1:8081","invoke":"","admin":"","pid":1}"#;
        std::fs::write(dir.path().join("server.json"), server).unwrap();
        assert_eq!(to("http://10.0.0.1:8081", None).unwrap(), "id$secret");
    }

    #[test]
    fn a_name_cannot_leave_its_place() {
        assert_eq!(escape("a-b_c.9~"), "a-b_c.9~");
        assert_eq!(
            escape("a/b?c#d&e=f+g h%ä"),
            "a%2Fb%3Fc%23d%26e%3Df%2Bg%20h%25%C3%A4"
        );
    }

    #[tokio::test]
    async fn lists_are_read_to_their_end() {
        let all: Vec<u32> = (0..2_500).collect();
        let serve = move |Query(asked): Query<std::collections::HashMap<String, usize>>| {
            let page: Vec<u32> = all
                .iter()
                .copied()
                .skip(asked["offset"])
                .take(PAGE)
                .collect();
            async move { axum::Json(json!({"count": 2_500, "items": page})) }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api = Api::at(listener.local_addr().unwrap());
        let router = Router::new().route("/list", get(serve));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let listed = api.list("/list").await.unwrap();
        let expected: Vec<u32> = (0..2_500).collect();
        assert_eq!(listed, json!({"items": expected}));
        server.abort();
    }
}
