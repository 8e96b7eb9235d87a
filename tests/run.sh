#!/usr/bin/env bash
# The whole test suite on a bare Debian or Ubuntu machine; installs what it needs.
#   tests/run.sh          everything (root or sudo for the end-to-end part)
#   tests/run.sh unit     formatting, lints, layers, unit and property tests; no root needed
#   tests/run.sh e2e      only the end-to-end tests, with a real containerd of their own
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/machine.sh

part=${1:-all}
target=${CARGO_TARGET_DIR:-$PWD/target}

# Everything is built once, with one set of features, for all parts.
build=(--locked --workspace --features coracle-containerd/e2e,coracle/fake-driver)
build_all() {
    cargo build "${build[@]}" --all-targets
}

# nextest gives each test a process and a timeout; plain cargo does where it is not installed.
nextest() {
    cargo nextest --version >/dev/null 2>&1
}
unit_tests() {
    if nextest; then
        cargo nextest run "${build[@]}"
        return
    fi
    # Everything but the two binaries that need root, with the features of the one build.
    cargo test "${build[@]}" --exclude coracle-tests --exclude coracle-containerd
    cargo test --locked --package coracle-containerd --features coracle-containerd/e2e --lib
}
# Clusters of real processes on loopback, with the fake driver.
cluster_tests() {
    export CORACLE_TEST_BINARY=$target/debug/coracle
    if nextest; then
        cargo nextest run "${build[@]}" --ignore-default-filter --filterset 'binary(cluster)' --test-threads 2
    else
        cargo test "${build[@]}" --test cluster -- --test-threads=2
    fi
}
e2e_tests() { # of one package, or of all that have some
    if nextest; then
        cargo nextest run "${build[@]}" --profile e2e ${1:+--filterset "package($1)"}
    elif [ -n "${1:-}" ]; then
        cargo test --locked --package "$1" --test e2e -- --test-threads=1
    else
        cargo test "${build[@]}" --test e2e -- --test-threads=1
    fi
}

if [ "$part" != e2e ]; then
    apt_install ca-certificates curl gcc libc6-dev make protobuf-compiler python3
    install_rust
    install_lints
    CORACLE_TEST_NODE=$(find_node "$target/node")
    export CORACLE_TEST_NODE
    say "formatting, layers, licences, lints"
    cargo xtask ci
    say "unit and property tests"
    build_all
    unit_tests
    say "clusters of real processes"
    cluster_tests
fi

if [ "$part" != unit ]; then
    install_packages
    install_rust
    apt_install python3-venv
    say "building the binary"
    build_all
    images=${CORACLE_TEST_IMAGES:-/var/tmp/coracle-test-images}
    route=recipe
    if apt-cache show python3.11-minimal >/dev/null 2>&1 && grep -q bookworm /etc/os-release; then
        # The same files from the host's own packages: seconds instead of a minute.
        apt_install python3.11-minimal libpython3.11-stdlib libstdc++6
        route=host-packages
    fi
    export CORACLE_IMAGE_ROUTE=$route CORACLE_TEST_IMAGES=$images
    say "runtime images ($route)"
    $SUDO "$target/debug/coracle" runtime build --images "$images" python3.11 nodejs20
    sdk=$target/gcore-sdk
    if [ ! -x "$sdk/bin/python" ]; then
        say "Gcore's Python SDK"
        python3 -m venv "$sdk"
        "$sdk/bin/pip" install --quiet gcore==0.59.0
    fi
    say "end-to-end tests"
    export CORACLE_TEST_BINARY=$target/debug/coracle
    export CORACLE_TEST_GCORE_PYTHON=$sdk/bin/python
    if [ -n "$SUDO" ]; then
        # cargo's own name for the host's target, in capitals.
        host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
        export "CARGO_TARGET_${host}_RUNNER=sudo -E"
    fi
    e2e_tests
    say "the same with controller, agent and gateway as three processes"
    CORACLE_TEST_APART=1 e2e_tests coracle-tests
fi
