# shellcheck shell=bash
# What the scripts of the Kubernetes harness share. Sourced by them, with `set -euo pipefail`.
# shellcheck disable=SC2034,SC2154

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Programs that `build` makes: Kubernetes, etcd, the sidecars.
bin=${COWSLIP_KUBERNETES_BIN:-${XDG_CACHE_HOME:-$HOME/.cache}/cowslip/kubernetes/bin}
PATH=$PATH:/usr/sbin:/sbin

# The API listens on its own service address, and every node has a route to it: no kube-proxy is needed.
api=10.96.0.1
gateway=10.88.0.1
node_address() { printf '10.88.0.%d' $((10 + $1)); }

say() { printf 'kubernetes: %s\n' "$*" >&2; }
die() {
    say "error: $1"
    [ $# -lt 2 ] || say "hint: $2"
    exit 1
}

# Until COMMAND succeeds, at most SECONDS.
wait_until() { # SECONDS WHAT COMMAND…
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || die "$what did not come in time" "its log is in $cluster/log"
        sleep 0.2
    done
}

# A service with a log of its own, started again a second after it ended, as systemd would.
service() { # NAME COMMAND…
    local log=$cluster/log/$1.log
    shift
    while :; do
        "$@" || :
        sleep 1
    done >>"$log" 2>&1 </dev/null &
}

# What process 1 of a namespace does for the rest of its life: it is the parent of orphans.
reap() {
    while :; do wait -n || sleep 1; done
}
