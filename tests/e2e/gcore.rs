//! Gcore's own Python SDK, unmodified, against this server.

use std::process::Command;

use coracle_tests::Server;

/// Runs `gcore_client.py` of this folder with the variables that `coracle key create` prints.
fn run(server: &Server, case: &str) {
    let (code, exports, err) = server.cli(&["key", "create", "--cloud", "gcore", "-o", "json"]);
    assert_eq!(code, 0, "{err}");
    let variables: serde_json::Value = serde_json::from_str(&exports).expect("JSON");
    let python = std::env::var_os("CORACLE_TEST_GCORE_PYTHON").expect("tests/run.sh sets it");
    let mut command = Command::new(python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/gcore_client.py"))
        .arg(case);
    for (name, value) in variables.as_object().expect("an object") {
        command.env(name, value.as_str().unwrap_or_default());
    }
    let output = command.output().expect("python starts");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn create_poll_invoke_with_variables_and_a_dependency() {
    let server = Server::start().await;
    run(&server, "happy");
}

#[tokio::test]
async fn a_dependency_that_does_not_exist_ends_the_task_in_error() {
    let server = Server::start().await;
    run(&server, "bad_dependency");
}

#[tokio::test]
async fn the_exported_lines_are_a_shell_script() {
    let server = Server::start().await;
    let (code, lines, err) = server.cli(&["key", "create", "--cloud", "gcore", "-o", "env"]);
    assert_eq!(code, 0, "{err}");
    let script = format!("{lines}\nprintf %s \"$GCORE_API_KEY\"");
    let output = Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("sh");
    let key = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(lines.contains(&key) && key.contains('$'), "{lines}");
    let url = format!("{}/cloud/v1/faas/namespaces/1/1", server.address("api"));
    let authorization = format!("apikey {key}");
    let headers = [("authorization", authorization.as_str())];
    server
        .public
        .send(http::Method::GET, &url, &headers, "")
        .await
        .ok();
}
