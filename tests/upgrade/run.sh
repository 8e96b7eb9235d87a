#!/usr/bin/env bash
# Builds a recorded release, lets it write a data directory with running instances, and goes on with today's binary.
# Needs root or sudo, and what tests/run.sh prepares; about ten minutes the first time, which builds the release.
#   tests/upgrade/run.sh [VERSION]        default: every release in releases.toml
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/lib/machine.sh
install_packages
install_rust

target=${CARGO_TARGET_DIR:-$PWD/target}
export CORACLE_TEST_IMAGES=${CORACLE_TEST_IMAGES:-/var/tmp/coracle-test-images}
export CORACLE_IMAGE_ROUTE=${CORACLE_IMAGE_ROUTE:-recipe}
cargo build --locked --package coracle --features fake-driver
cargo build --locked --package coracle-tests --test upgrade
$SUDO "$target/debug/coracle" runtime build --images "$CORACLE_TEST_IMAGES" python3.11

# What a release was made from, as releases.toml says.
releases() {
    awk -F'"' '/^version/ { version = $2 } /^commit/ { print version, $2 }' tests/upgrade/releases.toml
}

ran=0
while read -r version commit; do
    [ -z "${1:-}" ] || [ "$1" = "$version" ] || continue
    tree=$target/upgrade/$version
    if [ ! -x "$tree/coracle" ]; then
        say "building release $version ($commit)"
        rm -rf "$tree/source"
        mkdir -p "$tree"
        git clone --quiet --shared --no-checkout . "$tree/source"
        git -C "$tree/source" checkout --quiet "$commit"
        (cd "$tree/source" && CARGO_TARGET_DIR=$target/upgrade/build cargo build --locked --package coracle)
        cp "$target/upgrade/build/debug/coracle" "$tree/coracle"
        rm -rf "$tree/source"
    fi
    say "from release $version to today's binary"
    CORACLE_TEST_RELEASE=$tree/coracle CORACLE_TEST_BINARY=$target/debug/coracle \
        $SUDO env "PATH=$PATH" cargo test --locked --package coracle-tests --test upgrade -- --test-threads=1
    ran=$((ran + 1))
done < <(releases)
[ "$ran" -gt 0 ] || die "releases.toml names no release ${1:-}"
