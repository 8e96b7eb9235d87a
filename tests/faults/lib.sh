# Shared by the fault commands of the stores: loop devices, the program that writes, clean-up.
# Sourced, not run. Needs root.

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. deploy/lib/machine.sh
[ "$(id -u)" = 0 ] || die "this mounts file systems: run it as root"
apt_install e2fsprogs util-linux xfsprogs

target=${CARGO_TARGET_DIR:-$PWD/target}
if [ -z "${STORE_FAULTS:-}" ]; then
    cargo build --quiet --locked -p coracle-controller --example store_faults
    STORE_FAULTS=$target/debug/examples/store_faults
fi

work=$(mktemp -d /var/tmp/coracle-faults.XXXXXX)
writer=
clean_up() {
    [ -z "$writer" ] || { kill -9 "$writer" && wait "$writer"; } 2>/dev/null || true
    # What was mounted last lies deepest.
    awk -v under="$work/" 'index($2, under) == 1 { print $2 }' /proc/self/mounts | tac |
        while read -r at; do umount "$at" || umount -l "$at"; done
    rm -rf "$work"
}
trap clean_up EXIT

# Numbers that follow from a seed alone.
random() { # seed, below
    echo $((16#$(printf '%s' "$1" | sha256sum | cut -c1-8) % $2))
}

# How many numbers the writer has acknowledged: they are 0, 1, 2, ... on lines of their own.
acknowledged() { # its output
    grep -c '^[0-9]*$' "$1" || true
}

# Waits on a condition; a machine that never gets there ends the run.
until_true() { # seconds, command
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || die "waited in vain for: $*"
        sleep 0.01
    done
}
at_least() { [ "$(acknowledged "$1")" -ge "$2" ]; }
has_failed() { grep -q '^failed' "$1"; }
