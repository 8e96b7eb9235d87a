//! Compiles the wire contracts without a system protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["agent", "control", "log", "model", "node", "route"]
        .map(|name| format!("coracle/v1/{name}.proto"));
    println!("cargo::rerun-if-changed=coracle");
    let descriptors = protox::compile(files, ["."])?;
    // Sorted maps, so that equal values give equal bytes (the log's snapshots are compared by hash).
    tonic_prost_build::configure()
        .btree_map(".")
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
