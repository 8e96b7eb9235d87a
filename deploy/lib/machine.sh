# Shared by quickstart.sh and tests/run.sh: makes a Debian or Ubuntu machine able to build and run
# Coracle. Sourced, not run.

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

SUDO=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "run this as root, or install sudo"
    SUDO="sudo -E"
fi

# Installs the named Debian packages that are missing; says nothing when all are there.
apt_install() {
    local missing=()
    local package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    command -v apt-get >/dev/null ||
        die "this needs apt; install these yourself: ${missing[*]}"
    say "installing ${missing[*]}"
    $SUDO env DEBIAN_FRONTEND=noninteractive sh -c '
        apt-get -qq update && apt-get -qq -y install --no-install-recommends "$@" >/dev/null' \
        sh "${missing[@]}" || die "apt could not install: ${missing[*]}"
}

# What builds the binary, and what it uses at run time.
install_packages() {
    apt_install ca-certificates curl gcc libc6-dev make protobuf-compiler \
        containerd runc iproute2 iptables mmdebstrap debian-archive-keyring python3-pip-whl
}

# A Rust toolchain at least as new as rust-toolchain.toml.
install_rust() {
    local wanted have
    wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
    if command -v rustup >/dev/null && cargo --version >/dev/null 2>&1; then
        return 0
    fi
    if command -v cargo >/dev/null; then
        have=$(cargo --version 2>/dev/null | awk '{print $2}')
        if [ -n "$have" ] && printf '%s\n%s\n' "$wanted" "$have" | sort -VC; then
            return 0
        fi
    fi
    say "installing Rust $wanted with rustup"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs 2>/dev/null |
        sh -s -- -y --profile minimal --default-toolchain "$wanted" >/dev/null 2>&1 || die \
        "Rust $wanted is needed (found: ${have:-none}) and https://sh.rustup.rs cannot be reached.
Install it from a mirror of yours (https://rust-lang.github.io/rustup) and run this again."
    . "$HOME/.cargo/env"
}

# rustfmt and clippy, which a minimal toolchain lacks.
install_lints() {
    cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return 0
    command -v rustup >/dev/null ||
        die "rustfmt and clippy are needed; install them beside your Rust (packages rustfmt, rust-clippy)"
    say "installing rustfmt and clippy"
    rustup component add rustfmt clippy >/dev/null 2>&1 || die "rustup could not add rustfmt and clippy"
}

# A Node.js that runs our shim's tests (20.19 or newer): the machine's, else the npm registry's
# binary under the given directory. Prints its path.
find_node() {
    local dir=$1 registry node arch version pin url
    for node in "$(command -v node || true)" "$dir/package/bin/node"; do
        if [ -x "$node" ] && "$node" -e '
            const [a, b] = process.versions.node.split(".").map(Number);
            process.exit(a > 20 || (a == 20 && b >= 19) ? 0 : 1)'; then
            echo "$node"
            return 0
        fi
    done
    say "fetching Node.js"
    registry=${NPM_CONFIG_REGISTRY:-https://registry.npmjs.org}
    mkdir -p "$dir"
    # The one that runtime images hold, by its pin.
    pinned() {
        sed -n "/^arch = \"$(uname -m)\"/,/^to = /s/^$1 = \"\(.*\)\"/\1/p" runtimes/nodejs20/runtime.toml
    }
    arch=$(pinned package)
    version=$(pinned version)
    pin=$(pinned integrity | sed 's/^sha512-//' | base64 -d | od -An -v -tx1 | tr -d ' \n')
    [ -n "$arch" ] || die "no Node.js is known for $(uname -m)"
    url=${registry%/}/$arch/-/$arch-$version.tgz
    curl -fsSL -o "$dir/node.tgz" "$url" || die "Node.js cannot be had from $url"
    echo "$pin  $dir/node.tgz" | sha512sum --check --status || die "$url is not what it should be"
    tar -xz -C "$dir" -f "$dir/node.tgz"
    echo "$dir/package/bin/node"
}
