# shellcheck shell=bash
# What every demo needs: a directory that goes away, steps that are timed, an agent that is stopped.
# Sourced by demo/run, with `set -euo pipefail`; the two share their variables.
# shellcheck disable=SC2034,SC2154

# Everything the demo makes lies in here.
T=
# But for this: writes that are acknowledged and not yet on disk, which the agent keeps in a tmpfs.
ring=
# Loop devices bear the pool's id.
pool_id=
# The process that was started as the agent; it restarts the serving process where there is no systemd.
agent=
# Mount points, in the order of mounting.
mounts=()
# Lines of the table: what, seconds, result.
rows=()
current='preparing'

say() { printf '%s\n' "$*" >&2; }
die() {
    say "demo: error: $1"
    [ $# -lt 2 ] || say "demo: hint: $2"
    exit 1
}

# Fails unless the machine said what the step promises.
expect() { # WHAT ACTUAL EXPECTED
    [ "$2" = "$3" ] || die "$current: $1 is '$2', expected '$3'"
}

now() { date +%s.%N; }

# Runs a function as a step. It says in $result what it found.
step() { # TITLE FUNCTION
    local begun took
    current=$1
    result=ok
    say "demo: $current"
    begun=$(now)
    "$2"
    took=$(awk -v a="$begun" -v b="$(now)" 'BEGIN { printf "%.2f", b - a }')
    rows+=("$current	$took	$result")
}

table() {
    local row what took found
    printf '\n%-44s %10s  %s\n' step took result
    for row in "${rows[@]}"; do
        IFS=$'\t' read -r what took found <<<"$row"
        printf '%-44s %8s s  %s\n' "$what" "$took" "$found"
    done
}

# A path below /var/tmp and not /tmp, which may be a tmpfs: a pool is a file opened with O_DIRECT.
make_directory() {
    local base=${TMPDIR:-/var/tmp} free_kib
    free_kib=$(df -Pk "$base" | awk 'NR == 2 { print $4 }')
    [ "$free_kib" -gt $((5 * 1024 * 1024)) ] || die "less than 5 GiB free in $base" "TMPDIR=DIRECTORY make demo"
    T=$(mktemp -d "$base/cowslip-demo.XXXXXX")
    ring=$(mktemp -d /dev/shm/cowslip-demo.XXXXXX)
    mkdir "$T/tree" "$T/mnt" "$T/clone" "$T/snapshots" "$T/restored"
}

# Real files of this machine, at most 800 MiB of them: their names, one a line, in $T/list, below $source.
choose_files() {
    local candidate
    for candidate in /usr/share "${CARGO_HOME:-$HOME/.cargo}/registry/src"; do
        [ -d "$candidate" ] || continue
        # Files that this user cannot read, and the names that a list by lines cannot hold, are left out.
        { find "$candidate" -xdev -type f -readable ! -name '*[[:cntrl:]\\]*' -printf '%s\t%P\n' 2>/dev/null || true; } |
            LC_ALL=C sort -t $'\t' -k2 |
            awk -F '\t' -v left=$((800 * 1024 * 1024)) '$1 <= left { left -= $1; print }' >"$T/chosen"
        cut -f2- "$T/chosen" >"$T/list"
        source=$candidate
        files=$(wc -l <"$T/list")
        [ "$files" -lt 10000 ] || break
    done
    [ "$files" -ge 10000 ] || die "no 10,000 readable files in /usr/share, nor in cargo's registry" "cargo fetch brings some"
    (cd "$source" && tr '\n' '\0' <"$T/list" | xargs -0 sha256sum --) >"$T/originals.sha256"
    # Something in the first directory that holds more than one file, for the single file and the single directory.
    directory=$(awk -F/ 'NF > 2 { print $1 "/" $2 }' "$T/list" | uniq -c |
        awk '!found && $1 >= 20 && $1 <= 2000 { sub(/^ *[0-9]+ /, ""); print; found = 1 }')
    [ -n "$directory" ] || die "no directory of 20 to 2,000 files in $source"
    one_file=$(awk -v not="$directory/" 'index($0, not) != 1' "$T/list" | sed -n '100p')
    damaged=$(awk -v not="$directory/" 'index($0, not) != 1' "$T/list" | sed -n '5000p')
}

copy_files() { # DESTINATION
    tar -C "$source" --verbatim-files-from --files-from="$T/list" -cf - | tar -C "$1" -xf - --no-same-owner
}

# Whether the files below the directory are the originals, every one of them.
matches_originals() { # DIRECTORY
    (cd "$1" && sha256sum --check --quiet --strict "$T/originals.sha256") >"$T/compare.log" 2>&1
}
expect_originals() { # DIRECTORY
    matches_originals "$1" || {
        head -n 20 "$T/compare.log" >&2
        die "$current: files below $1 differ from the originals"
    }
}
# How many of the originals are missing or different.
count_differences() { # DIRECTORY
    matches_originals "$1" || true
    grep -c ': FAILED' "$T/compare.log" || true
}

cowslip() { "$binaries/cowslip" --socket "$T/agent.sock" -q "$@"; }

# The value of the last "KEY" in JSON from stdin: a number, or a string of plain characters.
json_value() { # KEY
    tr -d ' \n' | sed -n "s/.*\"$1\":\"\{0,1\}\([a-z0-9]*\).*/\1/p"
}

agent_pid() { cowslip --json status | json_value pid; }

start_agent() {
    # In a session of its own: a Ctrl-C is for the demo, which unmounts before it stops the agent.
    setsid "$binaries/cowslip" agent --config "$T/config.toml" </dev/null >"$T/agent.log" 2>&1 &
    agent=$!
    cowslip status --wait 30s >/dev/null || {
        tail -n 20 "$T/agent.log" >&2
        die "the agent does not serve"
    }
    pool_id=$(cowslip --json status | json_value id)
}

# Runs a command that may hang on a dead device, and gives up on it after so many seconds.
bounded() { # SECONDS COMMAND…
    local left=$(($1 * 10)) pid
    shift
    "$@" >/dev/null 2>&1 &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        [ "$left" -gt 0 ] || return 1
        left=$((left - 1))
        sleep 0.1
    done
    wait "$pid"
}

stop_agent() {
    [ -n "$agent" ] || return 0
    kill -TERM "$agent" 2>/dev/null || true
    bounded 20 tail --pid="$agent" -f /dev/null || kill -KILL "$agent" 2>/dev/null || true
    wait "$agent" 2>/dev/null || true
    agent=
}

# What is still there of the demo's: processes, mount points, loop devices.
leftovers() {
    # The pattern comes from stdin, or grep would find itself.
    # shellcheck disable=SC2062
    grep -lsF --file=- -- /proc/[0-9]*/cmdline <<<"$T/" | awk -F/ '{ print "process: " $3 }'
    awk -v t="$T/" 'index($2, t) == 1 { print "mounted: " $2 }' /proc/self/mounts
    if command -v losetup >/dev/null; then
        losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null |
            awk -v name="/cowslip-loop.${pool_id:-none}." 'index($2, name) == 1 { print "loop device: " $1 }'
    fi
    return 0
}

mount_at() { # DEVICE DIRECTORY
    mount "$1" "$2"
    mounts+=("$2")
}

unmount() { # DIRECTORY
    umount "$1"
    local kept=() mount
    for mount in "${mounts[@]}"; do
        [ "$mount" = "$1" ] || kept+=("$mount")
    done
    mounts=("${kept[@]+"${kept[@]}"}")
}

# Runs once, whatever ended the demo: a step that failed, Ctrl-C, the end.
clean_up() {
    local code=$? rest i line
    trap - EXIT
    trap '' INT TERM HUP
    set +e
    [ -n "$T" ] && [ -n "$ring" ] || exit "$code"
    [ "$code" = 0 ] || say "demo: cleaning up after: $current"
    for ((i = ${#mounts[@]} - 1; i >= 0; i--)); do
        bounded 30 umount "${mounts[i]}"
    done
    for i in copy files; do
        [ -z "$agent" ] || bounded 20 cowslip volume detach "$i"
    done
    stop_agent
    # Only after a failure is there anything left to take away by force. Without a server a device fails what it queues.
    leftovers | while read -r line; do
        case $line in
        process:*) kill -KILL "${line#process: }" ;;
        mounted:*) bounded 10 umount --lazy "${line#mounted: }" ;;
        loop*) bounded 10 losetup --detach "${line#loop device: }" ;;
        esac
    done
    rest=$(leftovers)
    if [ -n "$rest" ]; then
        say "demo: error: left behind in $T:"
        say "$rest"
        exit 1
    fi
    if [ "$code" != 0 ] && [ -s "$T/agent.log" ]; then
        say "demo: the last lines of the agent's log:"
        tail -n 20 "$T/agent.log" >&2
    fi
    rm -rf --one-file-system "$T" "$ring"
    exit "$code"
}

# Also before $T exists: nothing is done then.
guard() {
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}
