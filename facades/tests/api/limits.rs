//! Bad input: each limit at its bound and just beyond, wrong types, missing and null members. What
//! is refused names its field and changes nothing.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, gcore, native};

/// Where in a body, with what, and which field is to blame; `None` when it is fine.
type Case = (&'static str, Value, Option<&'static str>);

fn set(body: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = body.pointer_mut(parent).expect("the parent exists");
    let object = parent.as_object_mut().expect("an object");
    if value == "absent" {
        object.remove(name);
    } else {
        object.insert(name.to_owned(), value);
    }
}

fn chars(count: usize) -> Value {
    // Two bytes each, so that a limit in bytes would be found out.
    "é".repeat(count).into()
}

fn ascii(count: usize) -> Value {
    "a".repeat(count).into()
}

fn envs(key: &str, value: &str) -> Value {
    json!({ key: value })
}

/// What Gcore's create and patch share.
fn gcore_common() -> Vec<Case> {
    let long = "A".repeat(255);
    let longer = "A".repeat(256);
    vec![
        ("/timeout", json!(0), None),
        ("/timeout", json!(180), None),
        ("/timeout", json!(-1), Some("timeout")),
        ("/timeout", json!(181), Some("timeout")),
        ("/timeout", json!(5_000_000_000_i64), Some("timeout")),
        ("/timeout", json!(1.5), Some("timeout")),
        ("/timeout", json!("5"), Some("timeout")),
        ("/timeout", json!(true), Some("timeout")),
        ("/flavor", json!("64mCPU-64MB"), None),
        ("/flavor", json!("huge"), Some("flavor")),
        ("/flavor", json!("64m-2001MB"), Some("flavor")),
        ("/flavor", json!(""), Some("flavor")),
        ("/flavor", json!(64), Some("flavor")),
        (
            "/autoscaling",
            json!({"min_instances": 0, "max_instances": 1}),
            None,
        ),
        (
            "/autoscaling",
            json!({"min_instances": 0, "max_instances": 0}),
            None,
        ),
        (
            "/autoscaling",
            json!({"min_instances": 50, "max_instances": 50}),
            None,
        ),
        (
            "/autoscaling/min_instances",
            json!(-1),
            Some("autoscaling.min_instances"),
        ),
        (
            "/autoscaling/min_instances",
            json!(51),
            Some("autoscaling.min_instances"),
        ),
        (
            "/autoscaling/min_instances",
            json!("1"),
            Some("autoscaling.min_instances"),
        ),
        (
            "/autoscaling/max_instances",
            json!(-1),
            Some("autoscaling.max_instances"),
        ),
        (
            "/autoscaling",
            json!({"min_instances": 1, "max_instances": 0}),
            Some("autoscaling.min_instances"),
        ),
        (
            "/autoscaling/max_instances",
            json!(51),
            Some("autoscaling.max_instances"),
        ),
        (
            "/autoscaling",
            json!({"min_instances": 3, "max_instances": 2}),
            Some("autoscaling.min_instances"),
        ),
        ("/autoscaling", json!([1, 2]), Some("autoscaling")),
        ("/autoscaling", json!(1), Some("autoscaling")),
        ("/code_text", ascii(1), None),
        ("/code_text", chars(100_000), None),
        ("/code_text", ascii(100_001), Some("code_text")),
        ("/code_text", json!(""), Some("code_text")),
        ("/code_text", json!(1), Some("code_text")),
        ("/main_method", ascii(1), None),
        ("/main_method", ascii(100), None),
        ("/main_method", ascii(101), Some("main_method")),
        ("/main_method", json!(""), Some("main_method")),
        ("/main_method", json!("a b"), Some("main_method")),
        ("/main_method", json!("main.handler"), None),
        ("/main_method", json!(1), Some("main_method")),
        ("/dependencies", json!(""), None),
        ("/dependencies", json!(null), None),
        ("/dependencies", chars(100_000), None),
        ("/dependencies", ascii(100_001), Some("dependencies")),
        ("/dependencies", json!([]), Some("dependencies")),
        ("/description", json!(""), None),
        ("/description", json!(null), None),
        ("/description", chars(255), None),
        ("/description", chars(256), Some("description")),
        ("/description", json!(1), Some("description")),
        ("/enable_api_key", json!(null), None),
        ("/enable_api_key", json!(false), None),
        ("/enable_api_key", json!("true"), Some("enable_api_key")),
        ("/envs", json!({}), None),
        ("/envs", json!(null), None),
        ("/envs", envs(&long, &long), None),
        ("/envs", envs("_a1", ""), None),
        (
            "/envs",
            envs(&longer, ""),
            Some("envs.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
        ),
        ("/envs", envs("A", &longer), Some("envs.A")),
        ("/envs", envs("", ""), Some("envs.")),
        ("/envs", envs("1A", ""), Some("envs.1A")),
        ("/envs", envs("A-B", ""), Some("envs.A-B")),
        ("/envs", json!({"A": 1}), Some("envs.A")),
        ("/envs", json!([]), Some("envs")),
        ("/keys", json!([]), None),
        ("/keys", json!(null), None),
        ("/keys", json!(["missing"]), Some("keys[0]")),
        ("/keys", json!(["Bad"]), Some("keys[0]")),
        ("/keys", json!([1]), Some("keys[0]")),
        ("/keys", json!("key"), Some("keys")),
        ("/disabled", json!(null), None),
        ("/disabled", json!(true), None),
        ("/disabled", json!(1), Some("disabled")),
        ("/something_new", json!({"a": 1}), None),
    ]
}

fn gcore_create_only() -> Vec<Case> {
    let mut cases = vec![
        ("/name", json!("ab"), None),
        ("/name", ascii(26), None),
        ("/name", json!("a-1"), None),
        ("/name", json!("a"), Some("name")),
        ("/name", ascii(27), Some("name")),
        ("/name", json!(""), Some("name")),
        ("/name", json!("1a"), Some("name")),
        ("/name", json!("a-"), Some("name")),
        ("/name", json!("Ab"), Some("name")),
        ("/name", json!("a_b"), Some("name")),
        ("/name", json!("éé"), Some("name")),
        ("/name", json!(1), Some("name")),
        ("/runtime", json!("python3.11"), None),
        ("/runtime", json!("nodejs20"), None),
        ("/runtime", json!("cobol85"), Some("runtime")),
        ("/runtime", json!("python2.7.18"), Some("runtime")),
        ("/runtime", json!(""), Some("runtime")),
        (
            "/runtime",
            format!("python3.{}", "0".repeat(99)).into(),
            Some("runtime"),
        ),
        ("/runtime", json!(3), Some("runtime")),
        (
            "/autoscaling/min_instances",
            json!("absent"),
            Some("autoscaling.min_instances"),
        ),
        (
            "/autoscaling/max_instances",
            json!("absent"),
            Some("autoscaling.max_instances"),
        ),
        (
            "/autoscaling/max_instances",
            json!(null),
            Some("autoscaling.max_instances"),
        ),
    ];
    for (pointer, field) in [
        ("/name", "name"),
        ("/runtime", "runtime"),
        ("/timeout", "timeout"),
        ("/flavor", "flavor"),
        ("/autoscaling", "autoscaling"),
        ("/code_text", "code_text"),
        ("/main_method", "main_method"),
    ] {
        cases.push((pointer, json!("absent"), Some(field)));
        cases.push((pointer, json!(null), Some(field)));
    }
    cases
}

fn gcore_patch_only() -> Vec<Case> {
    let mut cases = vec![
        ("/name", json!("hello"), None),
        ("/name", json!("other"), Some("name")),
        ("/runtime", json!("python3.7.12"), None),
        ("/runtime", json!("nodejs20"), Some("runtime")),
        // The function has 1 and 2.
        ("/autoscaling", json!({}), None),
        ("/autoscaling", json!({"min_instances": 2}), None),
        (
            "/autoscaling",
            json!({"min_instances": 3}),
            Some("autoscaling.min_instances"),
        ),
        ("/autoscaling", json!({"max_instances": 1}), None),
    ];
    for pointer in [
        "/timeout",
        "/flavor",
        "/autoscaling",
        "/code_text",
        "/main_method",
    ] {
        cases.push((pointer, json!(null), None));
    }
    cases
}

/// Sends the body with the case's change, and checks the verdict in both shapes.
async fn check(server: &Server, method: Method, path: &str, mut body: Value, case: &Case) {
    let (pointer, value, field) = case;
    let shown: String = value.to_string().chars().take(60).collect();
    let what = format!("{method} {path} {pointer} = {shown}");
    set(&mut body, pointer, value.clone());
    let before = server.picture();
    let answer = server.call(method, path, body).await;
    let Some(field) = field else {
        assert!(answer.status.is_success(), "{what}: {}", answer.text);
        return;
    };
    assert_eq!(
        answer.status,
        StatusCode::BAD_REQUEST,
        "{what}: {}",
        answer.text
    );
    let json = answer.json();
    assert_eq!(json["field"], *field, "{what}: {json}");
    assert_eq!(json["code"], "invalid_value", "{what}");
    let message = if path.starts_with("/api/") {
        "detail"
    } else {
        "message"
    };
    assert!(
        json[message].as_str().is_some_and(|m| m.starts_with(field)),
        "{what}: {json}"
    );
    assert!(json["request_id"].is_string(), "{what}");
    assert_eq!(server.picture(), before, "{what}");
}

#[tokio::test]
async fn gcore_create_function_limits() {
    for case in gcore_common().iter().chain(&gcore_create_only()) {
        let server = gcore::server().await;
        check(
            &server,
            Method::POST,
            gcore::FUNCTIONS,
            gcore::create(),
            case,
        )
        .await;
    }
}

#[tokio::test]
async fn gcore_patch_function_limits() {
    for case in gcore_common().iter().chain(&gcore_patch_only()) {
        // The members of what a create has are set one by one on an empty patch.
        let server = gcore::with_hello().await;
        let body = if case.0.starts_with("/autoscaling/") {
            json!({"autoscaling": {}})
        } else {
            json!({})
        };
        check(&server, Method::PATCH, gcore::HELLO, body, case).await;
    }
}

#[tokio::test]
async fn gcore_namespace_limits() {
    let common: Vec<Case> = vec![
        ("/description", chars(255), None),
        ("/description", chars(256), Some("description")),
        ("/description", json!(null), None),
        ("/description", json!(1), Some("description")),
        ("/envs", json!(null), None),
        ("/envs", envs("A", "é"), None),
        ("/envs", envs("A", &"x".repeat(256)), Some("envs.A")),
        ("/envs", envs("A B", ""), Some("envs.A B")),
        ("/envs", json!({"A": null}), Some("envs.A")),
        ("/envs", json!("A=1"), Some("envs")),
    ];
    let names: Vec<Case> = vec![
        ("/name", ascii(26), None),
        ("/name", ascii(27), Some("name")),
        ("/name", json!("a"), Some("name")),
        ("/name", json!("absent"), Some("name")),
        ("/name", json!(null), Some("name")),
        ("/name", json!(7), Some("name")),
    ];
    for case in common.iter().chain(&names) {
        let server = Server::new();
        check(
            &server,
            Method::POST,
            gcore::NAMESPACES,
            json!({"name": "fresh"}),
            case,
        )
        .await;
    }
    let renamed: [Case; 2] = [
        ("/name", json!("space"), None),
        ("/name", json!("other"), Some("name")),
    ];
    for case in common.iter().chain(&renamed) {
        let server = gcore::server().await;
        let path = format!("{}/space", gcore::NAMESPACES);
        check(&server, Method::PATCH, &path, json!({}), case).await;
    }
}

#[tokio::test]
async fn gcore_key_limits() {
    let hello = json!([{"name": "hello", "namespace": "space"}]);
    let many = |n: usize| vec![json!({"name": "hello", "namespace": "space"}); n];
    let common: Vec<Case> = vec![
        ("/description", chars(255), None),
        ("/description", chars(256), Some("description")),
        ("/functions", json!([]), None),
        ("/functions", json!(null), None),
        ("/functions", hello, None),
        ("/functions", many(100).into(), None),
        ("/functions", many(101).into(), Some("functions")),
        (
            "/functions",
            json!([{"name": "none", "namespace": "space"}]),
            Some("functions[0]"),
        ),
        (
            "/functions",
            json!([{"name": "Bad", "namespace": "space"}]),
            Some("functions[0].name"),
        ),
        (
            "/functions",
            json!([{"name": "hello", "namespace": ""}]),
            Some("functions[0].namespace"),
        ),
        (
            "/functions",
            json!([{"name": "hello"}]),
            Some("functions[0].namespace"),
        ),
        ("/functions", json!("hello"), Some("functions")),
        (
            "/functions",
            json!([["hello", "space"]]),
            Some("functions[0]"),
        ),
        ("/expire", json!("2030-01-01T00:00:00Z"), None),
        ("/expire", json!("2030-01-01T00:00:00.5+02:00"), None),
        ("/expire", json!(""), None),
        ("/expire", json!(null), None),
        ("/expire", json!("tomorrow"), Some("expire")),
        ("/expire", json!(5), Some("expire")),
    ];
    let names: Vec<Case> = vec![
        ("/name", ascii(26), None),
        ("/name", ascii(27), Some("name")),
        ("/name", json!("absent"), Some("name")),
        ("/name", json!(null), Some("name")),
    ];
    for case in common.iter().chain(&names) {
        let server = gcore::with_hello().await;
        check(
            &server,
            Method::POST,
            gcore::KEYS,
            json!({"name": "key"}),
            case,
        )
        .await;
    }
    for case in &common {
        let server = gcore::with_hello().await;
        server.post(gcore::KEYS, json!({"name": "key"})).await.ok();
        check(
            &server,
            Method::PATCH,
            &format!("{}/key", gcore::KEYS),
            json!({}),
            case,
        )
        .await;
    }
}

/// What the native create and patch share.
fn native_common() -> Vec<Case> {
    vec![
        ("/description", chars(255), None),
        ("/description", chars(256), Some("description")),
        ("/handler", ascii(100), None),
        ("/handler", ascii(101), Some("handler")),
        ("/handler", json!(""), Some("handler")),
        ("/code", chars(100_000), None),
        ("/code", ascii(100_001), Some("code")),
        ("/code", json!(""), Some("code")),
        ("/dependencies", chars(100_000), None),
        ("/dependencies", ascii(100_001), Some("dependencies")),
        ("/dependencies", json!(null), None),
        ("/convention", json!("scf"), None),
        ("/convention", json!("cgi"), Some("convention")),
        ("/network", json!("none"), None),
        ("/network", json!("host"), Some("network")),
        ("/memory_mib", json!(16), None),
        ("/memory_mib", json!(15), Some("memory_mib")),
        ("/memory_mib", json!(32_768), None),
        ("/memory_mib", json!(32_769), Some("memory_mib")),
        ("/memory_mib", json!(-5), Some("memory_mib")),
        ("/memory_mib", json!("128"), Some("memory_mib")),
        ("/cpu_millis", json!(10), None),
        ("/cpu_millis", json!(9), Some("cpu_millis")),
        ("/cpu_millis", json!(64_001), Some("cpu_millis")),
        ("/timeout_seconds", json!(1), None),
        ("/timeout_seconds", json!(0), Some("timeout_seconds")),
        ("/timeout_seconds", json!(900), None),
        ("/timeout_seconds", json!(901), Some("timeout_seconds")),
        (
            "/init_timeout_seconds",
            json!(0),
            Some("init_timeout_seconds"),
        ),
        (
            "/init_timeout_seconds",
            json!(901),
            Some("init_timeout_seconds"),
        ),
        ("/concurrency", json!(1_000), None),
        ("/concurrency", json!(0), Some("concurrency")),
        ("/concurrency", json!(1_001), Some("concurrency")),
        ("/scale", json!({"min": 50, "max": 50}), None),
        ("/scale", json!({"min": -1}), Some("scale.min")),
        ("/scale", json!({"min": 11}), Some("scale.min")),
        ("/scale", json!({"min": 51, "max": 50}), Some("scale.min")),
        ("/scale", json!({"min": 0, "max": 0}), None),
        ("/scale", json!({"min": 1, "max": 0}), Some("scale.min")),
        ("/scale", json!({"max": -1}), Some("scale.max")),
        ("/scale", json!({"max": 51}), Some("scale.max")),
        (
            "/scale",
            json!({"max": 9_999_999_999_i64}),
            Some("scale.max"),
        ),
        ("/scale", json!({"maximum": 1}), Some("scale.maximum")),
        ("/env", envs("A", &"x".repeat(256)), Some("env.A")),
        ("/env", envs("1", ""), Some("env.1")),
        ("/keys", json!(["missing"]), Some("keys[0]")),
        ("/keys", json!(["Bad"]), Some("keys[0]")),
        ("/keys", vec![json!("k"); 101].into(), Some("keys")),
        ("/annotations", json!({"a/b": "x".repeat(8_189)}), None),
        (
            "/annotations",
            json!({"a/b": "x".repeat(8_190)}),
            Some("annotations"),
        ),
        ("/annotations", json!({"a": 1}), Some("annotations.a")),
        ("/memory", json!(128), Some("memory")),
        ("/disabled", json!("no"), Some("disabled")),
        ("/key_required", json!(1), Some("key_required")),
    ]
}

#[tokio::test]
async fn native_function_limits() {
    let mut create: Vec<Case> = vec![
        ("/name", json!("a"), None),
        ("/name", ascii(63), None),
        ("/name", ascii(64), Some("name")),
        ("/name", json!(""), Some("name")),
        ("/runtime", json!("cobol"), Some("runtime")),
    ];
    for (pointer, field) in [
        ("/name", "name"),
        ("/runtime", "runtime"),
        ("/handler", "handler"),
        ("/code", "code"),
    ] {
        create.push((pointer, json!("absent"), Some(field)));
        create.push((pointer, json!(null), Some(field)));
    }
    for case in native_common().iter().chain(&create) {
        let server = native::server().await;
        check(
            &server,
            Method::POST,
            native::FUNCTIONS,
            native::create(),
            case,
        )
        .await;
    }
    let patch: [Case; 4] = [
        ("/name", json!("hello"), None),
        ("/name", json!("other"), Some("name")),
        ("/runtime", json!("python3.11"), None),
        ("/runtime", json!("nodejs20"), Some("runtime")),
    ];
    for case in native_common().iter().chain(&patch) {
        let server = native::with_hello().await;
        check(&server, Method::PATCH, native::HELLO, json!({}), case).await;
    }
}

#[tokio::test]
async fn native_other_limits() {
    let cases: Vec<(&str, Value, Case)> = vec![
        (
            "/api/v1/projects",
            json!({"name": "new"}),
            ("/name", json!("Bad"), Some("name")),
        ),
        (
            "/api/v1/projects",
            json!({"name": "new"}),
            ("/name", json!("absent"), Some("name")),
        ),
        (
            "/api/v1/projects",
            json!({"name": "new"}),
            ("/x", json!(1), Some("x")),
        ),
        (
            "/api/v1/tokens",
            json!({"role": "admin"}),
            ("/role", json!("root"), Some("role")),
        ),
        (
            "/api/v1/tokens",
            json!({"role": "admin"}),
            ("/project", json!("default"), Some("project")),
        ),
        (
            "/api/v1/tokens",
            json!({"role": "project"}),
            ("/project", json!("none"), Some("project")),
        ),
        (
            "/api/v1/tokens",
            json!({"role": "project"}),
            ("/project", json!(null), Some("project")),
        ),
        (
            "/api/v1/tokens",
            json!({"role": "admin"}),
            ("/expires_at", json!("x"), Some("expires_at")),
        ),
        (
            "/api/v1/tokens",
            json!({"role": "admin"}),
            ("/description", chars(256), Some("description")),
        ),
        (
            "/api/v1/projects/default/namespaces",
            json!({"name": "new"}),
            ("/name", ascii(64), Some("name")),
        ),
        (
            "/api/v1/projects/default/namespaces",
            json!({"name": "new"}),
            ("/env", envs("=", ""), Some("env.=")),
        ),
        (
            "/api/v1/projects/default/keys",
            json!({"name": "new"}),
            ("/name", json!("_"), Some("name")),
        ),
        (
            "/api/v1/projects/default/keys",
            json!({"name": "new"}),
            ("/expires_at", json!(""), Some("expires_at")),
        ),
        (
            "/api/v1/projects/default/keys",
            json!({"name": "new"}),
            (
                "/functions",
                json!([{"namespace": "space", "name": "none"}]),
                Some("functions[0]"),
            ),
        ),
    ];
    for (path, body, case) in &cases {
        let server = native::with_hello().await;
        check(&server, Method::POST, path, body.clone(), case).await;
    }
}

#[tokio::test]
async fn the_largest_create_in_its_longest_spelling_fits() {
    let server = gcore::server().await;
    // Each a character outside the basic plane, written as two escapes of six bytes.
    let text = "\\ud83d\\ude00".repeat(100_000);
    let body = gcore::create()
        .to_string()
        .replace("requests==2.31.0", &text)
        .replace("def main():\\n    return 'Hello World'", &text);
    assert!(body.len() > 2_400_000, "{}", body.len());
    let admin = Some(server.admin.as_str());
    let answer = server
        .with_token(admin, Method::POST, gcore::FUNCTIONS, body)
        .await;
    answer.ok();
    let hello = gcore::hello(&server).await;
    assert_eq!(hello["code_text"], "😀".repeat(100_000));
    assert_eq!(hello["dependencies"], "😀".repeat(100_000));
}

/// Bad places: project and region are numbers, and both exist.
#[tokio::test]
async fn gcore_bad_projects_and_regions() {
    let server = gcore::with_hello().await;
    for (place, status, field) in [
        ("1/1", StatusCode::OK, None),
        ("01/1", StatusCode::OK, None),
        ("2/1", StatusCode::NOT_FOUND, None),
        ("1/2", StatusCode::NOT_FOUND, None),
        ("0/1", StatusCode::NOT_FOUND, None),
        ("x/1", StatusCode::BAD_REQUEST, Some("project_id")),
        ("-1/1", StatusCode::BAD_REQUEST, Some("project_id")),
        ("+1/1", StatusCode::BAD_REQUEST, Some("project_id")),
        ("1.5/1", StatusCode::BAD_REQUEST, Some("project_id")),
        ("99999999999/1", StatusCode::BAD_REQUEST, Some("project_id")),
        ("1/x", StatusCode::BAD_REQUEST, Some("region_id")),
        ("1/%20", StatusCode::BAD_REQUEST, Some("region_id")),
    ] {
        for rest in [
            "namespaces/{}/space/functions/hello",
            "keys/{}",
            "flavors/{}",
            "runtimes/{}",
        ] {
            let path = format!("/cloud/v1/faas/{}", rest.replace("{}", place));
            let answer = server.get(&path).await;
            assert_eq!(answer.status, status, "{path}: {}", answer.text);
            if status != StatusCode::OK {
                assert_eq!(answer.json()["field"].as_str(), field, "{path}");
                assert!(answer.json()["exception_class"].is_string());
            }
        }
    }
}

#[tokio::test]
async fn gcore_bad_queries() {
    let server = gcore::with_hello().await;
    let lists = [gcore::NAMESPACES, gcore::FUNCTIONS, gcore::KEYS];
    for path in lists {
        for (query, field) in [
            ("limit=0", Some("limit")),
            ("limit=1", None),
            ("limit=1000", None),
            ("limit=1001", Some("limit")),
            ("limit=ten", Some("limit")),
            ("offset=-1", Some("offset")),
            ("order_by=created_at.asc", None),
            ("order_by=name.desc", None),
            ("order_by=id.asc", Some("order_by")),
            ("search=ab-1", None),
            ("search=A", Some("search")),
            ("search=aaaaaaaaaaaaaaaaaaaaaaaaaa", None),
            ("search=aaaaaaaaaaaaaaaaaaaaaaaaaaa", Some("search")),
            ("limit=", None),
        ] {
            let answer = server.get(&format!("{path}?{query}")).await;
            let expected = if field.is_some() {
                StatusCode::BAD_REQUEST
            } else {
                StatusCode::OK
            };
            assert_eq!(answer.status, expected, "{path}?{query}: {}", answer.text);
            assert_eq!(answer.json()["field"].as_str(), field, "{path}?{query}");
        }
    }
    for (path, field) in [
        (format!("{}/logs?limit=0", gcore::HELLO), "limit"),
        (format!("{}/logs?limit=100001", gcore::HELLO), "limit"),
        (format!("{}?expire_in=x", gcore::KEYS), "expire_in"),
        ("/cloud/v1/tasks?state=DONE".to_owned(), "state"),
        ("/cloud/v1/tasks?project_id=x".to_owned(), "project_id"),
        ("/cloud/v1/tasks?region_id=x".to_owned(), "region_id"),
        ("/cloud/v1/tasks?order_by=name".to_owned(), "order_by"),
        (
            "/cloud/v1/tasks?from_timestamp=x".to_owned(),
            "from_timestamp",
        ),
        (
            "/cloud/v1/tasks?is_acknowledged=maybe".to_owned(),
            "is_acknowledged",
        ),
    ] {
        let answer = server.get(&path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert_eq!(answer.json()["field"], field, "{path}");
    }
}
