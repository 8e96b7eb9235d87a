//! Compiles the wire contracts without a system protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "agent", "artifact", "backup", "cluster", "control", "join", "log", "model", "node",
        "peer", "route",
    ]
    .map(|name| format!("coracle/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=coracle");
    let descriptors = protox::compile(files, ["."])?;
    // Every method there is, for the tests that ask something of each.
    let mut methods = String::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let path = [file.package(), service.name()].join(".");
                methods.push_str(&format!("{path} {}\n", method.name()));
            }
        }
    }
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("methods.txt"), methods)?;
    // Sorted maps, so that equal values give equal bytes (the log's snapshots are compared by hash).
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
