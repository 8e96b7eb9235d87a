#!/usr/bin/env bash
# A whole cluster on one machine, to try it out: three controllers, three nodes and two gateways, each in a network
# namespace of its own with an address of its own, each node with its own containerd.
#   deploy/local-cluster.sh up        starts what does not run yet
#   deploy/local-cluster.sh status    what runs, and what the cluster says of itself
#   deploy/local-cluster.sh env       lines for the shell: CORACLE_URL, CORACLE_TOKEN, and where functions are called
#   deploy/local-cluster.sh stop NAME | start NAME | kill NAME      one of c1 c2 c3 n1 n2 n3 g1 g2
#   deploy/local-cluster.sh down      stops everything and removes all of it
# Needs root or sudo. CORACLE_LOCAL_DIR (default /var/tmp/coracle-local) holds data and logs; CORACLE_LOCAL_NET (default
# 10.87.0) is the network that is made; CORACLE_BINARY is used instead of a release build.
set -euo pipefail
cd "$(dirname "$0")/.."
. deploy/lib/machine.sh
[ "$(id -u)" = 0 ] || exec sudo -E "$0" "$@"

root=${CORACLE_LOCAL_DIR:-/var/tmp/coracle-local}
net=${CORACLE_LOCAL_NET:-10.87.0}
# Interfaces and chains carry a part of the directory's name, so that two of these never meet.
tag=$(printf %s "$root" | cksum | cut -d' ' -f1 | tail -c 5)
bridge=clc$tag
controllers=(c1 c2 c3) nodes=(n1 n2 n3) gateways=(g1 g2)
everyone=("${controllers[@]}" "${nodes[@]}" "${gateways[@]}")
export CORACLE_IMAGE_ROUTE=${CORACLE_IMAGE_ROUTE:-recipe}
unset CORACLE_DATA CORACLE_URL CORACLE_TOKEN CORACLE_CONFIG

address() { # of a member
    local n=${1#?}
    case $1 in
        c*) echo "$net.1$n" ;;
        n*) echo "$net.2$n" ;;
        g*) echo "$net.3$n" ;;
        *) die "$1 is none of ${everyone[*]}" ;;
    esac
}
space() { echo "clc$tag-$1"; }
# Not `ip netns exec`: that hides the cgroups that agents need.
inside() { nsenter --net="/run/netns/$(space "$1")" "${@:2}"; }
pid_of() { # of a running member, or nothing
    local pid
    pid=$(cat "$root/$1.pid" 2>/dev/null) || return 0
    # A number that another program has by now is not taken for ours.
    [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$(cat "$root/binary" 2>/dev/null)" ] && echo "$pid"
    return 0
}
ready() { curl -fs -m 2 "http://$(address "$1"):9090/readyz" >/dev/null 2>&1; }

binary() {
    if [ -n "${CORACLE_BINARY:-}" ]; then
        readlink -f "$CORACLE_BINARY"
        return
    fi
    install_packages
    install_rust
    say "building the release binary (some minutes the first time)"
    cargo build --release --locked --package coracle >&2
    readlink -f "${CARGO_TARGET_DIR:-target}/release/coracle"
}

make_network() {
    if ! ip link show "$bridge" >/dev/null 2>&1; then
        ip link add "$bridge" type bridge
        ip address add "$net.1/24" dev "$bridge"
        ip link set "$bridge" up
    fi
    # Builds fetch packages: outward through this machine, as from any machine of a network.
    sysctl -qw net.ipv4.ip_forward=1
    iptables -t nat -C POSTROUTING -s "$net.0/24" ! -d "$net.0/24" -j MASQUERADE 2>/dev/null ||
        iptables -t nat -A POSTROUTING -s "$net.0/24" ! -d "$net.0/24" -j MASQUERADE
    for direction in -i -o; do
        iptables -C FORWARD $direction "$bridge" -j ACCEPT 2>/dev/null ||
            iptables -I FORWARD $direction "$bridge" -j ACCEPT
    done
    local name
    for name in "${everyone[@]}"; do
        [ -e "/run/netns/$(space "$name")" ] && continue
        ip netns add "$(space "$name")"
        ip link add "v$tag-$name" type veth peer name eth0 netns "$(space "$name")"
        ip link set "v$tag-$name" master "$bridge" up
        inside "$name" ip address add "$(address "$name")/24" dev eth0
        inside "$name" ip link set lo up
        inside "$name" ip link set eth0 up
        inside "$name" ip route add default via "$net.1"
    done
}

remove_network() {
    local name direction
    for name in "${everyone[@]}"; do
        ip netns delete "$(space "$name")" 2>/dev/null || true
        ip link delete "v$tag-$name" 2>/dev/null || true
    done
    ip link delete "$bridge" 2>/dev/null || true
    iptables -t nat -D POSTROUTING -s "$net.0/24" ! -d "$net.0/24" -j MASQUERADE 2>/dev/null || true
    for direction in -i -o; do
        iptables -D FORWARD $direction "$bridge" -j ACCEPT 2>/dev/null || true
    done
}

# Flags of a member, beside those with which it joins.
flags() {
    local at
    at=$(address "$1")
    echo "--data=$root/$1 --admin=$at:9090 --allow-plain-http --node-name=$1"
    case $1 in
        c*) echo "--listen=$at:7400 --advertise=$at:7400" ;;
        # A containerd of its own, also where the machine has one.
        n*) echo "--listen=$at:7401 --advertise=$at:7401 --label=zone=z${1#n}
                  --containerd=$root/$1/containerd/containerd.sock --images=$root/images-$1" ;;
        g*) echo "--invoke=$at:8080 --api=$at:8081" ;;
    esac
}
role() {
    case $1 in c*) echo controller ;; n*) echo agent ;; g*) echo gateway ;; esac
}

start() { # member, then how it joins
    local name=$1 pid
    shift
    [ -z "$(pid_of "$name")" ] || return 0
    mkdir -p -m 711 "$root/$name"
    # shellcheck disable=SC2046
    setsid nsenter --net="/run/netns/$(space "$name")" "$(cat "$root/binary")" "$(role "$name")" $(flags "$name") "$@" \
        >>"$root/$name.log" 2>&1 </dev/null &
    echo $! >"$root/$name.pid"
}

# Waits until a member is ready, and says what it said when it is not.
await() {
    local name
    for name in "$@"; do
        for _ in $(seq 600); do
            ready "$name" && continue 2
            [ -n "$(pid_of "$name")" ] || { tail -n 20 "$root/$name.log" >&2; die "$name ended"; }
            sleep 0.1
        done
        curl -s -m 2 "http://$(address "$name"):9090/readyz?verbose" >&2 || true
        tail -n 20 "$root/$name.log" >&2
        die "$name is not ready after 60 s"
    done
}

# The flags with which a member joins. The first gateway's are from the making of the cluster: tokens are made
# through a gateway.
joining() {
    local made
    if [ "$1" = g1 ]; then
        sed -n "s/^ *coracle gateway //p" "$root/init.log" | tr -d "'"
        return
    fi
    made=$(CORACLE_URL=http://$(address g1):8081 CORACLE_TOKEN=$(cat "$root/c1/admin.token") \
        "$(cat "$root/binary")" node token --role "$(role "$1")" --ttl 10m -o json 2>/dev/null)
    field() { printf '%s' "$made" | sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }
    echo "--join=$(address c1):7400 --token=$(field token) --ca-hash=$(field ca_hash)"
}

up() {
    umask 022
    mkdir -p -m 711 "$root"
    [ -e "$root/binary" ] || binary >"$root/binary"
    local bin name
    bin=$(cat "$root/binary")
    make_network
    if [ ! -e "$root/c1/identity.json" ]; then
        say "making the cluster on c1"
        inside c1 "$bin" cluster init --data "$root/c1" --name c1 --listen "$(address c1):7400" --advertise "$(address c1):7400" >"$root/init.log"
        chmod 600 "$root/init.log"
    fi
    for name in c1 g1 c2 c3 g2 "${nodes[@]}"; do
        if [ -e "$root/$name/identity.json" ]; then
            start "$name"
        else
            say "$name joins"
            # shellcheck disable=SC2046
            start "$name" $(joining "$name")
        fi
        # Whoever joins next asks the first controller, through the first gateway.
        case $name in c1 | g1) await "$name" ;; esac
    done
    await "${everyone[@]}"
    say "the cluster is up; eval \"\$($0 env)\" points the command line at it"
}

environment() {
    echo "export CORACLE_URL=http://$(address g1):8081"
    echo "export CORACLE_TOKEN='$(cat "$root/c1/admin.token")'"
    echo "export CORACLE_CALLS=http://$(address g1):8080,http://$(address g2):8080"
    echo "alias coracle='$(cat "$root/binary")'"
}

status() {
    local name pid
    [ -e "$root/binary" ] || die "nothing is there; deploy/local-cluster.sh up makes it"
    for name in "${everyone[@]}"; do
        pid=$(pid_of "$name")
        if [ -z "$pid" ]; then
            printf '%-3s %-11s stopped\n' "$name" "$(address "$name")"
        elif ready "$name"; then
            printf '%-3s %-11s ready, pid %s\n' "$name" "$(address "$name")" "$pid"
        else
            printf '%-3s %-11s not ready, pid %s\n' "$name" "$(address "$name")" "$pid"
        fi
    done
    export CORACLE_TOKEN CORACLE_URL
    CORACLE_URL=http://$(address g1):8081
    CORACLE_TOKEN=$(cat "$root/c1/admin.token")
    "$(cat "$root/binary")" cluster members
    "$(cat "$root/binary")" node ls
}

stop() { # member, signal
    local pid
    pid=$(pid_of "$1")
    [ -n "$pid" ] || return 0
    kill -s "$2" "$pid"
    for _ in $(seq 600); do
        [ -n "$(pid_of "$1")" ] || return 0
        sleep 0.1
    done
    die "$1 has not ended after 60 s"
}

down() {
    local name
    for name in "${gateways[@]}" "${nodes[@]}" "${controllers[@]}"; do
        stop "$name" TERM
    done
    for name in "${nodes[@]}"; do
        [ -e "$root/$name" ] || continue
        inside "$name" "$(cat "$root/binary")" down --purge --data "$root/$name" \
            --containerd "$root/$name/containerd/containerd.sock" || die "$name could not be cleaned up"
    done
    remove_network
    rm -rf "$root"
}

case "${1:-}" in
    up) up ;;
    status) status ;;
    env) environment ;;
    start) start "$2"; await "$2" ;;
    stop) stop "$2" TERM ;;
    kill) stop "$2" KILL ;;
    down) down ;;
    *) die "usage: deploy/local-cluster.sh up | status | env | start NAME | stop NAME | kill NAME | down" ;;
esac
