#!/bin/sh
# need.sh [--optional] THING...: see to it that this machine has each THING.
# apt installs what is missing when we are root; anybody else is told in one line, and we stop.
# With --optional a missing THING is only mentioned (the tests that want it skip themselves).
# Nothing is installed that would start a service of its own on this machine: a person must want that.
# Knows nothing of Python packages: environment.sh installs those.
set -u
python=${PYTHON:-python3}

is_there() {
    case $1 in
        python3) "$python" -c 'import sys, ssl, sqlite3; sys.exit(sys.version_info < (3, 10))' ;;
        python3-venv) "$python" -c 'import ensurepip, venv' ;;
        iproute2) command -v ip ;;
        nftables) command -v nft ;;
        openssh-client) command -v ssh ;;
        openssh-server) command -v sshd || test -x /usr/sbin/sshd ;;
        libssl-dev) test -f /usr/include/openssl/ssl.h ;;
        chromium) command -v chromium || command -v chromium-browser || command -v google-chrome ;;
        *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

missing_of() {
    for thing in "$@"; do
        is_there "$thing" || printf ' %s' "$thing"
    done
}

optional=no
if [ "${1-}" = --optional ]; then
    optional=yes
    shift
fi

missing=$(missing_of "$@")
[ -n "$missing" ] || exit 0

comes_alone() {  # its package starts no service here
    case $1 in
        caddy | openssh-server) [ ! -d /run/systemd/system ] ;;
        *) true ;;
    esac
}

export RUNLEVEL=1  # single-user, says runlevel(8) then: no init script is started either

apt_install() {
    log=$(mktemp)
    if ! apt-get install -y --no-install-recommends "$@" >"$log" 2>&1 </dev/null && [ "$optional" = no ]; then
        tail -n 15 "$log" >&2
    fi
    rm -f "$log"
}

# shellcheck disable=SC2086  # $missing: one word a package
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    wanted=
    for thing in $missing; do
        if comes_alone "$thing"; then wanted="$wanted $thing"; fi
    done
    echo "installing with apt:$wanted" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get update >/dev/null 2>&1 </dev/null || echo "apt-get update failed" >&2
    if [ "$optional" = yes ]; then
        for thing in $wanted; do apt_install "$thing"; done  # Ubuntu has no chromium: the others still come
    else
        apt_install $wanted
    fi
    missing=$(missing_of $missing)
    [ -n "$missing" ] || exit 0
fi

if [ "$optional" = yes ]; then
    echo "not here, so the tests that need it are skipped:$missing" >&2
    exit 0
fi
case $missing in
    *python3-venv*) ;;
    *python3*) missing="$missing (Python 3.10 or newer; PYTHON=... names another one)" ;;
esac
echo "please install (sudo apt-get install):$missing" >&2
exit 1
