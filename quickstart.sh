#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# From nothing to a mounted drive: dependencies, build, a server on loopback with a user and a workspace, a mount, and a proof that a file written
# into it is on the server. Safe to run again: what is there already is kept, what runs already is used.
#
#   ./quickstart.sh            start        ./quickstart.sh status     what is pending, what is cached
#   ./quickstart.sh stop       unmount and stop the server; nothing is deleted
#
# TARN_DIR   where the drive appears      (default ~/Tarn)
# TARN_DATA  where the rest is kept        (default ~/.local/share/tarn: the server's data, its log, the made-up password; if given, also the
#            client's state, which is in ~/.local/state/tarn otherwise)
# TARN_PORT  port on loopback             (default 7380, or a free one if that is taken)
# TARN_BUILD build directory              (default build-release below this one)
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"

: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
dir=$(readlink -m "${TARN_DIR:-$HOME/Tarn}") data=$(readlink -m "${TARN_DATA:-$HOME/.local/share/tarn}") build=$(readlink -m "${TARN_BUILD:-build-release}")
tarn=$build/cli/tarn server=$build/server/tarn-server
user=$(id -un) workspace=drive
# With the places as they are by default the client uses its default state, so that plain `tarn status` finds the drive; elsewhere it is kept beside the rest.
[ -z "${TARN_DATA:-}" ] || export TARN_STATE_DIR=${TARN_STATE_DIR:-$data/client}

say() { printf '%s\n' "$*"; }
die() { printf 'quickstart: %s\n' "$*" >&2; exit 1; }

# The server's pid if it is ours and alive.
server_pid() {
        local pid
        pid=$(cat "$data/server.pid" 2>/dev/null) || return 1
        [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "--data $data/server" && echo "$pid"
}

stop() {
        if [ -x "$tarn" ] && grep -qF " $dir " /proc/self/mounts; then
                "$tarn" umount "$dir" || die "the drive is still mounted; see above"
                say "unmounted $dir"
        fi
        local pid
        if pid=$(server_pid); then
                kill "$pid"
                timeout 30 tail --pid="$pid" -f /dev/null || die "the server (pid $pid) does not end; see $data/server.log"
                say "stopped the server (pid $pid)"
        fi
        rm -f "$data/server.pid"
        say "nothing was deleted: ./quickstart.sh starts again with the same files. To remove everything: rm -rf $data $build"
}

# Starts the server on the given address and waits for its own word that it listens.
serve() {
        local ready=$data/ready line=
        rm -f "$ready"
        mkfifo -m 600 "$ready"
        setsid "$server" serve --data "$data/server" --listen "$1" </dev/null >"$ready" 2>>"$data/server.log" &
        echo $! >"$data/server.pid"
        read -r -t 60 line <"$ready" || true
        rm -f "$ready"
        [[ $line == listening* ]]
}

start_server() {
        local port
        if [ -e "$data/server.pid" ] && server_pid >/dev/null; then
                url=$(cat "$data/server/url")
                return
        fi
        port=${TARN_PORT:-$(cat "$data/port" 2>/dev/null || echo 7380)}
        # The address is part of what the client remembers, so a port that was chosen once is kept.
        serve "127.0.0.1:$port" || { [ -z "${TARN_PORT:-}" ] && [ ! -e "$data/port" ] && serve 127.0.0.1:0; } || die "the server does not start: $(tail -n 1 "$data/server.log")"
        url=$(cat "$data/server/url")
        echo "${url##*:}" >"$data/port"
        curl -fsS -o /dev/null --max-time 10 "$url/v1/ready" || die "the server does not answer at $url; see $data/server.log"
}

start() {
        local began=$SECONDS
        scripts/install-deps.sh build
        [ -c /dev/fuse ] || die "there is no /dev/fuse here: load the module (modprobe fuse), or give it to this container (--device /dev/fuse --cap-add SYS_ADMIN)"
        if [ ! -e "$build/build.ninja" ]; then
                say "building (release) in $build"
                mkdir -p "$build"
                local wipe=
                [ ! -d "$build/meson-private" ] || wipe=--wipe # a setup that did not end
                meson setup $wipe --buildtype=release "$build" >"$build/setup.log" 2>&1 || { cat "$build/setup.log" >&2; die "meson setup failed"; }
        fi
        ninja -C "$build" cli/tarn server/tarn-server >"$build/ninja.log" 2>&1 || { tail -n 30 "$build/ninja.log" >&2; die "the build failed"; }

        umask 077
        mkdir -p "$data" "$dir" 2>/dev/null || [ -d "$dir" ] || grep -qF " $dir " /proc/self/mounts || die "cannot make $dir"
        [ -s "$data/password" ] || head -c 18 /dev/urandom | base64 >"$data/password"
        if [ ! -e "$data/made" ]; then
                rm -rf "$data/server"
                "$server" init --data "$data/server" >/dev/null
                "$server" user add "$user" --password-stdin --data "$data/server" <"$data/password" >/dev/null
                "$server" workspace add "$workspace" --owner "$user" --data "$data/server" >/dev/null
                (printf 'Authorization: Bearer '; "$server" token add --user "$user" --data "$data/server") >"$data/curl-header"
                touch "$data/made"
        fi
        start_server

        if ! "$tarn" status "$dir" >/dev/null 2>&1; then
                "$tarn" login "$url" --user "$user" --password-stdin <"$data/password" >/dev/null
                "$tarn" mount "$url/$workspace" "$dir"
        fi

        # The proof: through the mount, onto the server, back through the HTTP API.
        local name=hello.txt
        printf 'Hello from %s, %s.\n' "$(hostname)" "$(date -Is)" >"$dir/$name"
        "$tarn" wait "$dir" --timeout 60
        curl -fsS --max-time 30 -H "@$data/curl-header" "$url/v1/workspaces/$workspace/files/$name" | cmp - "$dir/$name" || die "what the server gives back differs from $dir/$name"

        say ""
        say "Your drive is at            $dir"
        say "Its server is               $url (workspace $workspace, user $user, password in $data/password)"
        say "A file written there        $dir/$name is on the server and came back the same over HTTP"
        say "See its state               ./quickstart.sh status"
        say "Stop                        ./quickstart.sh stop"
        say "Log files                   $data/server.log, ${TARN_STATE_DIR:-$HOME/.local/state/tarn}/mounts/*/log"
        say ""
        say "Try next:"
        say "  export PATH=$build/cli:$build/server:\$PATH${TARN_STATE_DIR:+ TARN_STATE_DIR=$TARN_STATE_DIR}"
        say "  tarn status; tarn --help; man -l packaging/tarn.1"
        say "  cp -a /usr/share/doc $dir/ && ./quickstart.sh status"
        say "  curl -H @$data/curl-header $url/v1/workspaces/$workspace/files/$name"
        say "  a second client, whose changes appear in the first within a second:"
        say "    mkdir -p $dir-2; tarn --state-dir $data/client2 login $url --user $user --password-stdin <$data/password"
        say "    tarn --state-dir $data/client2 mount $url/$workspace $dir-2"
        say ""
        say "ready after $((SECONDS - began)) s"
}

case "${1:-start}" in
start) start ;;
stop) stop ;;
status) [ -x "$tarn" ] || die "nothing is built yet: run ./quickstart.sh"
        exec "$tarn" status "$dir" ;;
*) sed -n '3,14s/^# \{0,1\}//p' "$0"; [ "$1" = --help ] || [ "$1" = -h ] || exit 2 ;;
esac
