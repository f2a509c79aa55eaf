# shellcheck shell=bash
# What the scripts of the kernel harness share. Sourced by them, with `set -euo pipefail`.
# shellcheck disable=SC2034,SC2154

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
    # Not from apt's lists, which a fresh machine may not have yet.
    sites=${COWSLIP_DEBIAN_MIRROR:-$(apt-get update --print-uris | sed -n "s|^'\(.*\)/dists/.*|\1|p" | awk '!seen[$0]++')}
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

# A directory in $scratch for one boot. It goes when the script ends; the logs of a failure are kept.
make_scratch() {
    # Where big sparse files may lie; /tmp is often in memory.
    local parent=${COWSLIP_KERNEL_TMP:-/var/tmp} old owner
    # Left by those that were killed.
    for old in "$parent"/cowslip-kernel.*; do
        if owner=$(cat "$old/owner" 2>/dev/null) && ! kill -0 "$owner" 2>/dev/null; then
            rm -rf "$old"
        fi
    done
    scratch=$(mktemp -d "$parent/cowslip-kernel.XXXXXX")
    printf '%s\n' "$$" >"$scratch/owner"
    machine=
    follower=
    trap end_of_boot EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

end_of_boot() {
    local status=$?
    trap - EXIT
    [ -z "$machine" ] || kill -KILL "$machine" 2>/dev/null || :
    [ -z "$follower" ] || kill "$follower" 2>/dev/null || :
    wait
    if [ "$status" != 0 ] && [ -s "$scratch/console" ]; then
        mkdir -p "$cache/logs"
        local log
        log=$(mktemp -d "$cache/logs/$(date +%Y%m%d-%H%M%S).XXXX")
        cp "$scratch/console" "$log"
        [ ! -e "$scratch/job/dmesg" ] || cp "$scratch/job/dmesg" "$log"
        say "exit code $status; console and kernel log are kept in $log"
        # The newest twenty.
        find "$cache/logs" -mindepth 1 -maxdepth 1 -type d | sort -r | tail -n +21 | xargs -r rm -rf
    fi
    rm -rf "$scratch"
    exit "$status"
}

# What `init` needs to run a command as if it were run here, and a disk for its /var/tmp.
prepare_job() { # SIZE COMMAND…
    local size=$1
    shift
    mkdir -p "$scratch/job/out"
    printf '%s\0' "$@" >"$scratch/job/command"
    env TMPDIR=/var/tmp COWSLIP_TEST_KERNEL=1 env -0 >"$scratch/job/environment"
    pwd >"$scratch/job/directory"
    # Directories that the command may need, wherever they are.
    printf '%s\0' "$(cd "$here/../.." && pwd)" "$PWD" "${COWSLIP_BINARIES:-$PWD}" "$HOME" "${XDG_CACHE_HOME:-$HOME}" "$(dirname "$1")" >"$scratch/job/shown"
    truncate -s "$size" "$scratch/tmp.img"
    mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 -O ^metadata_csum_seed "$scratch/tmp.img"
}

# Arguments of User Mode Linux for a machine whose console is read by a program. Its processes' system calls are caught by seccomp
# where the host lets it: twice as fast as ptrace, and more processors than one.
uml_console=(seccomp=auto con=null "con0=fd:0,fd:1" quiet panic=-1)

# Starts a machine whose console and end can be followed.
start_machine() { # SECONDS MACHINE ARGUMENT…
    local limit=$1
    shift
    : >"$scratch/console"
    # Whichever of these dies, the machine dies with it; its time limit needs none of the others.
    # The machine's memory is a file: where there is memory for it, and not in the /dev/shm of a small container.
    local memory=/dev/shm
    [ "$(df --output=avail -k /dev/shm 2>/dev/null | tail -n1)" -gt $((4 << 20)) ] 2>/dev/null || memory=$scratch
    TMPDIR=$memory setpriv --pdeathsig KILL timeout --foreground -s KILL "$limit" setpriv --pdeathsig KILL \
        "$@" </dev/null >"$scratch/console" 2>&1 &
    machine=$!
    tail -q -s 0.1 -n +1 -f "$scratch/console" &
    follower=$!
}

# Seconds after which a machine whose first process has not come to the job is started anew: an emulated one hung once in
# many boots, both processors busy and nothing on the console. Empty: never.
boot_patience=

# Runs a machine and waits for the result that it leaves in the job directory; exits with it.
boot() { # SECONDS MACHINE ARGUMENT…
    local limit=$1 ended=0 tries=3 began=$SECONDS
    start_machine "$@"
    while [ ! -e "$scratch/job/status" ] && kill -0 "$machine" 2>/dev/null; do
        sleep 0.1
        if [ -n "$boot_patience" ] && [ "$tries" -gt 1 ] && [ ! -e "$scratch/job/started" ] &&
            [ $((SECONDS - began)) -ge "$boot_patience" ]; then
            say "the machine did not come up within $boot_patience s: once more"
            kill -KILL "$machine" "$follower" 2>/dev/null || :
            wait "$machine" "$follower" 2>/dev/null || :
            # What it was started with holds the disk until it is gone, too.
            sleep 1
            tries=$((tries - 1)) began=$SECONDS
            start_machine "$@"
        fi
    done
    # It has said what it had to say.
    kill -KILL "$machine" 2>/dev/null || :
    wait "$machine" 2>/dev/null || ended=$?
    machine=
    # For what it said last.
    sleep 0.3
    kill "$follower" 2>/dev/null || :
    follower=
    if [ -e "$scratch/job/dmesg" ] && grep -E 'BUG:|WARNING:|Oops|blocked for more than' "$scratch/job/dmesg" >&2; then
        say "the kernel complained: see above"
    fi
    if [ -e "$scratch/job/status" ]; then
        exit "$(cat "$scratch/job/status")"
    elif [ "$ended" = 137 ] || [ "$ended" = 124 ]; then
        say "error: killed after $limit s without a result"
        exit 124
    fi
    say "error: the kernel ended without a result (its exit code: $ended)"
    exit 125
}
