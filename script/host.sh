# shellcheck shell=bash
# The two long-running things that script/up starts, dockerd and trestle, and how they are stopped without a trace.
# With systemd they are units; without it, processes in a session of their own, with a pid file and a log in $RUN.
# $RUN lives as long as the machine runs, as they do; a file there notes each thing that was done. Sourced by script/up.
RUN=/run/trestle-up
STATE=/var/lib/trestle
UNITS=/etc/systemd/system
unset DOCKER_HOST DOCKER_CONTEXT # this machine's engine is meant
kept=

keep() { kept=${kept:+$kept, }$1; }
note() { : >"$RUN/$1"; }
noted() { [ -e "$RUN/$1" ]; }
has_systemd() { [ -d /run/systemd/system ]; }
docker_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
daemon_answers() { .venv/bin/trestle status >/dev/null 2>&1; }
daemon_log() { if has_systemd; then echo "journalctl -u trestle"; else echo "$RUN/trestle.log"; fi; }

last_words() { tail -n 1 "$RUN/$1.log" 2>/dev/null || journalctl -u "${1%d}" -n 1 -o cat 2>/dev/null; }

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || return 1
        sleep 0.1
    done
}

# wait_for_process NAME SECONDS COMMAND...: until it succeeds, or the process that detach started has ended
wait_for_process() {
    local name=$1
    answers_or_ended() { "${@:2}" || { [ -s "$RUN/$1.pid" ] && [ ! -d "/proc/$(cat "$RUN/$1.pid")" ]; }; }
    wait_for "$2" answers_or_ended "$name" "${@:3}"
    "${@:3}"
}

# detach NAME COMMAND...: a process that outlives this shell
detach() {
    local name=$1
    shift
    # shellcheck disable=SC2016 # the new shell shall expand it
    setsid --fork sh -c 'echo $$ >"$0"; exec "$@"' "$RUN/$name.pid" "$@" </dev/null >>"$RUN/$name.log" 2>&1
}

# end NAME: the process that detach started, if it is still that one
end() {
    local pid
    pid=$(cat "$RUN/$1.pid" 2>/dev/null) || return 0
    grep -qa "$2" "/proc/$pid/cmdline" 2>/dev/null || return 0
    kill "$pid"
    wait_for 20 test ! -d "/proc/$pid" || kill -9 "$pid" 2>/dev/null || true
}

# What the daemon was started from; another one, as after a git pull, is a reason to start it again.
sources() {
    find driver plugin requirements/runtime.txt packaging/trestle.{service,socket} -type f ! -name '*.pyc' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}

start_daemon() {
    local verb=start
    if daemon_answers; then
        if ! noted daemon || [ "$(cat $RUN/sources 2>/dev/null)" = "$(sources)" ]; then
            say "up: trestle runs already"
            return
        fi
        say "up: trestle is started again, since this clone has changed; connections stay"
        if has_systemd; then verb=restart; else end trestle serve; fi
    fi
    [ -e $STATE ] || note state
    if has_systemd; then
        say "up: trestle as a service (systemd units trestle.socket, trestle.service)"
        [ -e $UNITS/trestle.service ] || note units
        # From this clone, which may be in a home folder that only its owner reads, or in /tmp.
        sed "s|^ExecStart=.*|ExecStart=$PWD/.venv/bin/trestle serve|; /^ProtectHome=/d; /^PrivateTmp=/d
            s|^CapabilityBoundingSet=.*|& CAP_DAC_READ_SEARCH|" packaging/trestle.service >$UNITS/trestle.service
        cp packaging/trestle.socket $UNITS/trestle.socket
        systemctl daemon-reload
        note daemon
        systemctl enable --quiet --now trestle.socket trestle.service && systemctl "$verb" trestle.service || fail "up: trestle did not start; see $(daemon_log)."
    else
        say "up: trestle as a background process (log: $RUN/trestle.log)"
        note daemon
        detach trestle "$PWD/.venv/bin/trestle" serve
    fi
    wait_for_process trestle 20 daemon_answers || fail "up: trestle does not answer; see $(daemon_log). Its last words: $(last_words trestle)"
    sources >$RUN/sources
}

stop_daemon() {
    noted daemon || return 0
    local networks=0
    if daemon_answers; then networks=$(.venv/bin/trestle networks --json | .venv/bin/python -c 'import json,sys; print(len(json.load(sys.stdin)))'); fi
    [ "$networks" = 0 ] || keep "$networks network(s) of yours in $STATE"
    say "down: trestle"
    if has_systemd; then
        systemctl disable --quiet --now trestle.socket trestle.service 2>/dev/null || true
        if noted units; then rm -f $UNITS/trestle.service $UNITS/trestle.socket && systemctl daemon-reload; fi
    else
        end trestle serve
    fi
    if noted state && [ "$networks" = 0 ]; then rm -rf $STATE; fi
}

start_engine() {
    if docker_answers; then
        say "up: Docker $(docker version --format '{{.Server.Version}}') runs already"
        return
    fi
    if has_systemd; then
        say "up: Docker (systemd unit docker.service)"
        note engine
        systemctl is-active --quiet containerd.service || note containerd
        systemctl start docker.service || fail "up: Docker did not start; see journalctl -u docker."
    else
        say "up: dockerd as a background process (log: $RUN/dockerd.log)"
        note engine
        detach dockerd dockerd
    fi
    wait_for_process dockerd 60 docker_answers || fail "up: Docker does not answer. Its last words: $(last_words dockerd)"
}

# What dockerd changes on a host and leaves when it stops: one bridge, its rules, forwarding, its folders.
DOCKER_FILES="/var/lib/docker /etc/docker /etc/docker/key.json /run/docker /run/containerd /run/docker.sock"
remember_host() {
    local table file
    [ ! -e "$RUN/files" ] || return 0
    for table in iptables ip6tables; do $table-save >"$RUN/$table.before" 2>/dev/null || true; done
    cat /proc/sys/net/ipv4/ip_forward >"$RUN/ip_forward.before"
    nft list tables >"$RUN/tables.before" 2>/dev/null || true
    ip link show docker0 >/dev/null 2>&1 || note docker0
    for file in $DOCKER_FILES; do
        if [ ! -e "$file" ]; then echo "$file"; elif [ -d "$file" ]; then find "$file" -prune -empty -printf '%p/\n'; fi
    done >"$RUN/files"
}

stop_engine() {
    noted engine || return 0
    if docker_answers && [ -n "$(docker ps -aq)$(docker image ls -q)$(docker volume ls -q)" ]; then
        note used
        keep "what you made in /var/lib/docker"
    fi
    say "down: Docker"
    if has_systemd; then
        systemctl stop docker.socket docker.service 2>/dev/null || true
        if noted containerd; then systemctl stop containerd.service 2>/dev/null || true; fi
    else
        end dockerd dockerd
    fi
}

forget_engine() {
    local file
    noted engine || return 0
    if noted docker0; then ip link del docker0 2>/dev/null || true; fi
    forget_rules iptables
    forget_rules ip6tables
    cat "$RUN/ip_forward.before" >/proc/sys/net/ipv4/ip_forward
    # Where / is not shared, dockerd mounts its folder on itself, and some versions leave that behind.
    umount /run/docker/netns/* /var/lib/docker 2>/dev/null || true
    while read -r file; do
        case $file in
        /var/lib/docker*) ! noted used || continue ;;
        esac
        case $file in
        */) find "$file" -xdev -mindepth 1 -delete ;; # the folder was there, and empty
        *) rm -rf "$file" ;;
        esac
    done <"$RUN/files"
    rmdir /sys/fs/cgroup/*/docker /sys/fs/cgroup/docker 2>/dev/null || true
}

# forget_rules iptables|ip6tables: Docker's chains and jumps out, and our rule beside them, in one transaction; what was there before stays, policy included.
forget_rules() {
    local before="$RUN/$1.before" policy family=ip table
    [ -n "$("$1-save" 2>/dev/null)" ] || return 0
    policy=$(sed -n '/^\*filter/,/^COMMIT/s/^:FORWARD \([A-Z]*\) .*/\1/p' "$before")
    "$1-save" | awk -v policy="${policy:-ACCEPT}" '
        FILENAME == ARGV[1] { old[$0] = 1; next }
        /^:FORWARD/ && table == "*filter" { $2 = policy }
        /^\*/ { table = $0 }
        old[$0] || !/DOCKER|docker0|docker_gwbridge|br-[0-9a-f]{12}|--comment trestle /' "$before" - | "$1-restore" || true
    # Tables that dockerd brought and that are empty now: a line that is not a table, a chain, its hook or a bracket is a rule.
    [ "$1" = iptables ] || family=ip6
    for table in nat filter raw mangle; do
        grep -qx "table $family $table" "$RUN/tables.before" && continue
        nft list table $family $table 2>/dev/null | grep -qvE '^(table|#|}|$)|^\s*(chain|type|})' ||
            nft delete table $family $table 2>/dev/null || true
    done
}
