//! The documents about the APIs, held against the code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use coracle_facades::codes::Code;

fn crate_path(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    let path = crate_path(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// First cell to the others, of every table row whose first cell is code.
fn rows(document: &str) -> BTreeMap<String, Vec<String>> {
    let mut rows = BTreeMap::new();
    for line in document.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line
            .trim_matches('|')
            .split('|')
            .map(|cell| cell.trim().to_owned());
        let key = cells.next().expect("a cell").trim_matches('`').to_owned();
        assert!(
            rows.insert(key.clone(), cells.collect()).is_none(),
            "{key} is listed twice"
        );
    }
    rows
}

/// `Struct.member` for every member of Gcore's JSON.
fn members() -> BTreeSet<String> {
    let mut members = BTreeSet::new();
    let mut current = String::new();
    for line in read("src/gcore/wire.rs").lines() {
        if let Some(rest) = line.strip_prefix("pub(crate) struct ") {
            current = rest.split(['<', ' ']).next().expect("a name").to_owned();
        } else if let Some(rest) = line.strip_prefix("    pub(crate) ") {
            let member = rest.split(':').next().expect("a name");
            members.insert(format!("{current}.{member}"));
        }
    }
    members
}

/// Names of all tests of this crate.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut folders = vec![crate_path("src"), crate_path("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("fn ").or(line.strip_prefix("async fn ")) {
                    if is_test {
                        names.insert(rest.split('(').next().expect("a name").to_owned());
                    }
                    is_test = false;
                } else if line == "#[test]" || line == "#[tokio::test]" {
                    is_test = true;
                }
            }
        }
    }
    names
}

#[test]
fn every_gcore_route_and_member_has_a_row_and_every_row_a_test() {
    let rows = rows(&read("../docs/api/gcore.md"));
    let routes = coracle_facades::gcore::route_list();
    let mut expected: BTreeSet<String> = routes
        .iter()
        .map(|(method, path)| format!("{method} {path}"))
        .collect();
    expected.extend(members());
    let listed: BTreeSet<String> = rows
        .keys()
        .filter(|key| !key.starts_with("path.") && !key.starts_with("query."))
        .cloned()
        .collect();
    assert!(expected.len() > 100, "{}", expected.len());
    let difference: Vec<_> = expected.symmetric_difference(&listed).collect();
    assert!(
        difference.is_empty(),
        "not in both the code and the document: {difference:#?}"
    );

    let tests = tests();
    let verdicts = ["acted on", "echoed", "refused", "made", "constant"];
    for (key, cells) in &rows {
        let [becomes, test] = cells.as_slice() else {
            panic!("{key}: three cells")
        };
        assert!(
            verdicts.iter().any(|verdict| becomes.starts_with(verdict)),
            "{key}: {becomes}"
        );
        assert!(
            tests.contains(test.trim_matches('`')),
            "{key}: there is no test {test}"
        );
    }
}

/// What handlers ask of a query is what the document lists.
#[test]
fn every_gcore_parameter_has_a_row() {
    let rows = rows(&read("../docs/api/gcore.md"));
    let mut sources = read("src/query.rs")
        .split("#[cfg(test)]")
        .next()
        .expect("code")
        .to_owned();
    for file in ["keys", "logs", "tasks", "routes"] {
        sources.push_str(&read(&format!("src/gcore/{file}.rs")));
    }
    let calls = [
        "params.get(\"",
        "params.integer(\"",
        "params.boolean(\"",
        "integers(\"",
        "several(params, \"",
        "time(params, \"",
    ];
    let mut found = BTreeSet::new();
    for call in calls {
        for rest in sources.split(call).skip(1) {
            found.insert(format!("query.{}", rest.split('"').next().expect("a name")));
        }
    }
    let listed: BTreeSet<String> = rows
        .keys()
        .filter(|key| key.starts_with("query."))
        .cloned()
        .collect();
    assert_eq!(found, listed);
}

#[test]
fn every_error_code_is_in_the_native_document_with_its_status() {
    let rows = rows(&read("../docs/api/native.md"));
    let listed: BTreeMap<&str, &str> = rows
        .iter()
        .map(|(code, cells)| (code.as_str(), cells[0].as_str()))
        .collect();
    let statuses: Vec<_> = Code::ALL
        .iter()
        .map(|code| (code.as_str(), code.status().as_u16().to_string()))
        .collect();
    let expected = statuses
        .iter()
        .map(|(code, status)| (*code, status.as_str()))
        .collect();
    assert_eq!(listed, expected);
}

#[test]
fn every_error_code_has_a_page_that_names_its_status() {
    for code in Code::ALL {
        let page = read(&format!("../docs/errors/{}.md", code.as_str()));
        let status = format!("Status {}", code.status().as_u16());
        assert!(page.contains(&status), "{}: {status}", code.as_str());
    }
}
