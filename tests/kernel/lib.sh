# shellcheck shell=bash
# What the scripts of the kernel harness share. Sourced by them, with `set -euo pipefail`.
# shellcheck disable=SC2034

# The kernel that the tests want. Where a mirror no longer has it, its newest one is taken.
kernel_version=${COWSLIP_KERNEL_VERSION:-7.3}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/cowslip/kernel
# Partition, device mapper and file system tools live in sbin, which is not in everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'kernel: %s\n' "$*" >&2; }
die() {
    say "error: $1"
    [ $# -lt 2 ] || say "hint: $2"
    exit 1
}

# apt with indexes and packages of its own below DIR: another release's packages are looked at and fetched without
# changing what this machine installs. Needs no root.
private_apt() { # DIR COMMAND…
    local dir=$1
    shift
    mkdir -p "$dir"/{lists/partial,cache/archives/partial}
    [ -e "$dir/status" ] || : >"$dir/status"
    "$@" -q -o Dir::State="$dir" -o Dir::State::Lists="$dir/lists" -o Dir::State::status="$dir/status" -o Dir::Cache="$dir/cache" \
        -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=- -o APT::Sandbox::User="$(id -un)" \
        -o Acquire::Retries=3 -o APT::Get::List-Cleanup=false
}

# The first mirror among those that this machine is configured for that has SUITE; its index is below DIR then.
find_suite() { # DIR SUITE
    local dir=$1 suite=$2 site sites keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$dir"
    # shellcheck disable=SC2016 # apt fills it in
    sites=${COWSLIP_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | awk '!seen[$0]++')}
    for site in $sites; do
        printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$site" "$suite" >"$dir/sources.list"
        if private_apt "$dir" apt-get update >"$dir/update.log" 2>&1 && ! grep -q '^[EW]:.*Failed to fetch' "$dir/update.log"; then
            return 0
        fi
    done
    tail -n 5 "$dir/update.log" >&2 || :
    die "no mirror of this machine's apt configuration has Debian's $suite" \
        "name a Debian mirror that has it: COWSLIP_DEBIAN_MIRROR=URL"
}
